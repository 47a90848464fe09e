"""How long `import vla_gym` takes against `import gymnasium`, each in a fresh interpreter.

The ids of every suite are registered as vla_gym is imported, so it must stay cheap: Gymnasium,
which it imports itself, is the base. Both are read as compiled bytecode, as from an installed
package, out of a folder that the warm-up fills.

    python benchmarks/import_time.py --json benchmarks/results/import_time.json
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import tempfile

from harness import Found, Ratio, main, take_turns

CODE = "import time; started = time.perf_counter(); import {}; print(time.perf_counter() - started)"


def measure(module: str, bytecode: str, _: int) -> float:
    """Return how long importing `module` takes in an interpreter of its own [ms]."""
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONDONTWRITEBYTECODE"}
    done = subprocess.run(
        [sys.executable, "-X", f"pycache_prefix={bytecode}", "-c", CODE.format(module)],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    return 1000 * float(done.stdout)


def compare(turns: int) -> Found:
    """Compare the two imports."""
    with tempfile.TemporaryDirectory() as bytecode:
        sides = {
            module: functools.partial(measure, module, bytecode)
            for module in ("gymnasium", "vla_gym")
        }
        values = take_turns(sides, turns, warm_up=3)
    return Found(values, "ms", [Ratio("vla_gym", "gymnasium", "cost")])


if __name__ == "__main__":
    sys.exit(main("import_time", __doc__, {"import": compare}, turns=25, quick=9))
