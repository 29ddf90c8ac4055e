#!/bin/sh
# install.sh VENV NEW REQUIREMENTS: an environment that has what VENV has, and requirements of its own before it.
set -eu
[ -e "$2/.installed" ] && [ ! "$3" -nt "$2/.installed" ] && exit 0
echo "installing $2"
"$1/bin/python" -m venv "$2"
purelib='import sysconfig; print(sysconfig.get_path("purelib"))'
echo "import site; site.addsitedir('$("$1/bin/python" -c "$purelib")')" > "$("$2/bin/python" -c "$purelib")/above.pth"
"$2/bin/python" -m pip install --quiet -r "$3"
touch "$2/.installed"
