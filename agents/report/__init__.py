"""``hsq report``: what finished runs found, as one HTML file that needs nothing else.

``run`` reads; ``figures``, ``layers``, ``curves`` and ``reasons`` draw and say, with ``svg``; ``detections``,
``restorations`` and ``pictures`` look at images, with ``data_uri``; ``page`` puts it together.
"""
