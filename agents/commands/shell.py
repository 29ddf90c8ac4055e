"""Commands about ``hsq`` itself: ``hsq completion``."""

from typing import Literal

from tyro.conf import Positional


def completion(shell: Positional[Literal["bash", "zsh", "fish"]]) -> None:
    """Print a script with which a shell completes commands and flags.

    Once written to the file of one of these examples it is read by every shell that is opened later.

    Example: hsq completion bash > ~/.local/share/bash-completion/completions/hsq
    Example: hsq completion zsh > "${fpath[1]}/_hsq"
    Example: hsq completion fish > ~/.config/fish/completions/hsq.fish

    :param shell: that reads the script
    """
    from agents.parser import completion_script

    print(completion_script(shell), end="")
