"""Runs a root directory as a container engine would run the image: as the image's user, without capabilities, nothing
writable but the volume and /tmp, with processes and network of its own."""

from __future__ import annotations

import json
import shlex
import subprocess
from collections.abc import Mapping
from pathlib import Path

from deploy.image.dockerfile import Dockerfile

MODELS = "/repository"  # where the example's folder is mounted: its sources are examples.*, its models examples/models
MOST_CHECKS = 300  # a second or two apart
# $1: the health check, $2: a file that must not be writable, $3: what to ask, the rest: the server.
SUPERVISE = """
health=$1; readonly=$2; ask=$3; shift 3
if touch "$readonly" 2>/dev/null; then echo "$readonly can be written"; exit 1; fi
if [ "$(id -u)" = 0 ]; then echo "runs as root"; exit 1; fi
if grep -q 'CapEff:.*[1-9a-f]' /proc/self/status; then echo "has capabilities"; exit 1; fi
"$@" & server=$!
checks=0
until sh -c "$health"; do
  kill -0 $server || exit 1
  checks=$((checks + 1)); [ $checks -lt MOST_CHECKS ] || exit 1
  sleep 1
done
echo "healthy after $checks checks that said otherwise"
sh -c "$ask" || exit 1
kill -TERM $server
wait $server
"""


def try_out(
    dockerfile: Dockerfile, target: str, root: Path, environment: Mapping[str, str], folder: str, examples: Path
) -> None:
    """Serves the example with the image's own command. Raises CalledProcessError where the file system is writable, the
    server does not become healthy, does not answer, or does not end with 0 when it is told to stop."""

    def words(instruction: str) -> list[str]:
        said = dockerfile.setting(target, instruction)
        listed: list[str] = json.loads(said[said.index("[") :])
        return listed

    user, group = dockerfile.setting(target, "USER").split(":")
    volume = dockerfile.setting(target, "VOLUME")
    moved = {"--models=/models": f"--models={MODELS}/examples/models", "--app-dir=/models": f"--app-dir={MODELS}"}
    command = [moved.get(word, word) for word in (*words("ENTRYPOINT"), *words("CMD"))]
    ask = "opara-client infer digits --input image=random --rows 3"
    inside = [
        SUPERVISE.replace("MOST_CHECKS", str(MOST_CHECKS)),
        "container",
        shlex.join(words("HEALTHCHECK")),
        f"{folder}/x",
        ask,
    ]
    variables = [f"{name}={value}" for name, value in environment.items()]
    limits = ["--bounding-set=-all", "--no-new-privs", "--clear-groups", f"--reuid={user}", f"--regid={group}"]
    program = ["setpriv", *limits, "env", "-i", *variables, "/bin/sh", "-c", *inside, *command]
    here = shlex.quote(str(root))
    owned = f"mode=755,uid={user},gid={group}"
    script = " && ".join(
        [
            "ip link set lo up",
            f"mount --bind {here} {here}",
            f"mkdir -p {here}{MODELS}/examples",
            f"mount --bind {shlex.quote(str(examples))} {here}{MODELS}/examples",
            f"mount --rbind /dev {here}/dev",
            f"mount -t proc proc {here}/proc",
            f"mount -t tmpfs tmpfs {here}/tmp",
            f"mount -t tmpfs -o {owned} tmpfs {here}{volume}",
            f"mount -o remount,bind,ro {here}",
            f"exec chroot {here} {shlex.join(program)}",
        ]
    )
    subprocess.run(["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "sh", "-c", script], check=True)
