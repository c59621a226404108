"""The documented syntax of the foreign commands that launchers and docs use."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Syntax:
    """How many positional arguments a command takes, and its flags: those that must be given, those
    that may, and those without a value.
    """

    positionals: int = 0
    required: str = ""
    optional: str = ""
    switches: str = ""


# gcloud: https://cloud.google.com/sdk/gcloud/reference/ and the words of the command.
# kubectl: https://kubernetes.io/docs/reference/kubectl/generated/
# sbatch, squeue: https://slurm.schedmd.com/ and their man pages.
QUEUED, VM = "gcloud compute tpus queued-resources", "gcloud compute tpus tpu-vm"
DOCUMENTED = {
    f"{QUEUED} create": Syntax(
        1, "zone accelerator-type runtime-version node-id", "scopes service-account", "spot"
    ),
    f"{QUEUED} describe": Syntax(1, "zone", "format"),
    f"{QUEUED} delete": Syntax(1, "zone", "", "force quiet async"),
    f"{VM} describe": Syntax(1, "zone", "format"),
    f"{VM} ssh": Syntax(1, "zone command worker", "ssh-flag", "internal-ip"),
    f"{VM} scp": Syntax(2, "zone worker", "", "recurse compress"),
    "gcloud auth login": Syntax(),
    "gcloud projects create": Syntax(1),
    "gcloud billing accounts list": Syntax(),
    "gcloud billing projects link": Syntax(1, "billing-account"),
    "gcloud config set": Syntax(2),
    "gcloud services enable": Syntax(1),
    "gcloud beta services identity create": Syntax(0, "service"),
    "gcloud storage buckets create": Syntax(1, "location", "", "uniform-bucket-level-access"),
    "gcloud storage buckets add-iam-policy-binding": Syntax(1, "member role"),
    "gcloud storage cp": Syntax(2, "", "", "recursive"),
    "gcloud storage cat": Syntax(1, "", "range"),
    "gcloud artifacts repositories create": Syntax(1, "repository-format location"),
    "gcloud auth configure-docker": Syntax(1),
    "gcloud container clusters create": Syntax(
        1, "location", "node-locations num-nodes machine-type scopes release-channel"
    ),
    "gcloud container clusters get-credentials": Syntax(1, "location"),
    "gcloud container clusters delete": Syntax(1, "location", "", "quiet"),
    "gcloud container node-pools create": Syntax(
        1, "cluster location", "node-locations machine-type tpu-topology num-nodes scopes", "spot"
    ),
    "gcloud container node-pools delete": Syntax(1, "cluster location", "", "quiet"),
    "kubectl apply": Syntax(0, "filename", "", "server-side"),
    "kubectl delete": Syntax(0, "filename"),
    "kubectl get": Syntax(1, "", "selector", "watch"),
    "kubectl logs": Syntax(0, "selector", "tail", "follow"),
    "sbatch": Syntax(
        1, "", "nodes gpus-per-node ntasks-per-node cpus-per-task time partition account array wrap"
    ),
    "squeue": Syntax(0, "", "", "me"),
}


def check(command: list[str]) -> None:
    """Asserts that the words of a command are as documented."""
    name = max(
        (known for known in DOCUMENTED if command[: len(known.split())] == known.split()),
        key=len,
        default=None,
    )
    assert name, f"undocumented: {command}"
    syntax, words = DOCUMENTED[name], command[len(name.split()) :]
    words = list(_joined(words, {*syntax.required.split(), *syntax.optional.split()}))
    if name == "sbatch":  # what follows the script is the script's
        script = next((i for i, word in enumerate(words) if not word.startswith("-")), len(words))
        words = words[: script + 1]
    flags = dict(word[2:].partition("=")[::2] for word in words if word.startswith("--"))
    valued = {*syntax.required.split(), *syntax.optional.split()}
    positionals = 0 if "wrap" in flags else syntax.positionals
    assert len(words) - len(flags) == positionals, command
    assert flags.keys() <= valued | {*syntax.switches.split()}, command
    assert flags.keys() >= {*syntax.required.split()}, command
    assert all(bool(value) == (flag in valued) for flag, value in flags.items()), command


def _joined(words: list[str], valued: set[str]) -> Iterator[str]:
    """The words, with `--flag value` as `--flag=value`."""
    rest = iter(words)
    for word in rest:
        yield f"{word}={next(rest)}" if word[2:] in valued else word
