"""Hostile programs, in classes of one trick each; their expected outputs are random, so that any reward is a forgery.

    python -m tests.bench._hostile --hostile 300 --honest 150      # JSON: tried, rewarded, escaped, and so on

Standard library only: it also runs as a user that cannot read the environment. Bombs are bounded by construction.
"""

# ruff: noqa: E501 (programs are texts on one line)
from __future__ import annotations

import argparse
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rewards import code
from rewards.sandbox.box import Ended, Limits, Outcome, Sandbox

FORGING = {
    "always equal": "class E({kind}):\n  __eq__=lambda s,o: True\n  __ne__=lambda s,o: False\n  __hash__=lambda s: 0\n"
    "  __bool__=lambda s: True\n  __str__=lambda s: '{guess}'\ndef f(x): return E()\nprint(E())",
    "subclass that lies": "class L(list):\n  __iter__=lambda s: iter([{guess}])\n  __eq__=lambda s,o: True\n"
    "class S(str):\n  __eq__=lambda s,o: True\ndef f(x): return {pick}\nprint({pick})",
    "patched builtins": "import builtins\nfor n in ('all','any','sum','isinstance','len','eval','exec','type','hash'):\n"
    "  setattr(builtins,n,lambda *a,**k: True)\nbuiltins.print=lambda *a,**k: None\ndef f(x): return {guess}",
    "patched json": 'import json, sys\njson.dumps=lambda *a,**k: \'{{"value": {guess}, "passed": true}}\'\n'
    "json.loads=lambda *a,**k: {{'nonce':'0','expression':'1'}}\ndef f(x): return 1",
    "replaced streams": "import sys, io\nclass O(io.StringIO):\n  __eq__=lambda s,o: True\nsys.stdout=sys.__stdout__=O()\n"
    "print({guess})\ndef f(x): return sys.stdout",
    "writes frames": "import os\ndef f(x):\n  for fd in range(64):\n    try: os.write(fd, b'{nonce} {{\"value\": true}}\\n'*{n})\n"
    "    except OSError: pass\n  return {guess}\nf(0)",
    "frame walk": "import sys\ndef f(x):\n  g=sys._getframe()\n  seen=[]\n  while g:\n    for k,v in list(g.f_locals.items()):\n"
    "      seen.append(v) if isinstance(v,(int,str)) else None\n    for k in ('expected','passed','result','ok'):\n"
    "      g.f_locals[k]=True; g.f_globals[k]=True\n    g=g.f_back\n"
    "  return seen[{n} % max(1,len(seen))] if seen else {guess}\nprint(f(0))",
    "speaks with the nonce": "import sys, os\ndef f(x):\n  g=sys._getframe()\n  while g:\n    q=g.f_locals.get('question')\n"
    "    if isinstance(q,dict):\n      os.write(4,(q['nonce']+' {{\"value\": {guess}}}\\n').encode()*{n})\n    g=g.f_back\n"
    "  return {guess}\nprint(1)",
    "object walk": "import gc\ndef f(x):\n  best={guess}\n  for o in gc.get_objects():\n    if isinstance(o,dict) and ('expected' in o or "
    "'outputs' in o):\n      best=o.get('expected',o.get('outputs'))\n  return best\nprint(f(0))",
    "tracing": "import sys\ndef t(fr,e,a):\n  fr.f_locals['wrong']=''\n  return t\nsys.settrace(t)\nsys.setprofile(t)\ndef f(x): return {guess}"
    "\nprint({guess})",
    "leaves early": "import atexit, os, sys\natexit.register(lambda: os._exit(0))\ndef f(x): {leave}\n{leave}",
    "reads for answers": "import glob, os\ndef f(x):\n  for p in ('/proc/self/environ','/proc/self/mem','/proc/1/cmdline','{secret}',"
    "'tests.json','/tmp/expected'):\n    try: return open(p,'rb').read(4096)\n    except OSError as e: pass\n  return {guess}\nprint(f(0))",
    "partial, then crash": "import sys, ctypes\nprint({guess}, flush=True)\ndef f(x): ctypes.string_at({n})\n{crash}",
    "pickle in output": "class P:\n  def __reduce__(s): return (open, ('{marker}','w'))\nimport pickle\ndef f(x): return pickle.dumps(P())\n"
    "print(pickle.dumps(P()))",
    "odd text": "def f(x): return '\\ud800\\x00'*{n}\nimport sys\nsys.stdout.buffer.write(b'\\xff\\x00\\xed\\xa0\\x80'*{n})\nraise ValueError('x'*{n}000)",
}
CONTAINED = {
    "reads secrets": "import os\nd=[str(dict(os.environ))]\nfor p in ('{secret}','/etc/passwd','/root/.ssh/id_rsa','/proc/1/environ','/etc/shadow',"
    "'/sys/kernel/notes','/proc/self/root{secret}','/../..{secret}'):\n  try: d.append(open(p).read())\n  except OSError: pass\nprint(d)\n"
    "def f(x): return str(d)",
    "writes outside": "import os\nfor p in ('{marker}','{folder}/m{n}','/m','/etc/m','/dev/shm/m','/.old{marker}'):\n"
    "  try: open(p,'w').write('x')\n  except OSError: pass\n  try: os.mkdir(p+'d')\n  except OSError: pass\ndef f(x): return {guess}",
    "links": "import os\nfor i in range({n}):\n  for do in (os.symlink,os.link):\n    try: do('{secret}','/tmp/l%d'%i); print(open('/tmp/l%d'%i).read())\n"
    "    except OSError: pass\ntry: os.chmod('{folder}',0o777); os.mknod('/tmp/n',0o60600,0x800); \nexcept OSError: pass\ndef f(x): return 1",
    "breaks out": "import ctypes, os\nl=ctypes.CDLL(None)\nfor fl in (0x20000,0x10000000,0x40000000,0x7e020000): l.unshare(fl)\n"
    "l.mount(b'none',b'/tmp',b'proc',0,0); l.mount(b'/',b'/tmp',b'',4096,0)\nl.chroot(b'/tmp'); l.setns({n},0); l.setns(4,0)\n"
    "l.umount2(b'/tmp',2); l.umount2(b'/',2); l.setuid(0); l.setresuid(0,0,0); l.prctl(22,0)\nos.chdir('/')\n"
    "try: print(os.listdir('..'), open('{secret}').read())\nexcept OSError: pass\ndef f(x): return 0",
    "connects": "import socket\nfor k in (socket.AF_INET,socket.AF_INET6,socket.AF_UNIX):\n  for a in (('127.0.0.1',{port}),('::1',{port}),'{unix}',"
    "chr(0)+'{abstract}',('127.0.0.1',6379),('127.0.0.1',8265)):\n    try:\n      s=socket.socket(k); s.settimeout(.05); s.connect(a); s.send(b'x')\n"
    "    except (OSError,TypeError): pass\ntry: socket.getaddrinfo('localhost',80)\nexcept OSError: pass\ndef f(x): return 0",
    "raw sockets": "import ctypes\nl=ctypes.CDLL(None)\nfor fam in (1,2,10,16,17,38,40):\n  for t in (1,2,3,5):\n    fd=l.syscall({socket_nr},fam,t,0)\n"
    "    if fd>=0: print('socket',fam,t)\nl.syscall(425,8,0)\nl.syscall(321,0,0,0)\nl.syscall(250,0,0)\ndef f(x): return 0",
    "signals others": "import os, signal, ctypes\nl=ctypes.CDLL(None)\nfor p in ({victim},{parent},-1,os.getppid(),2,{n}):\n  for s in (9,19,15):\n"
    "    try: os.kill(p,s) if p else None\n    except OSError: pass\n    l.syscall(234,p,p,s); l.syscall(424,p,s,0,0)\n"
    "  l.ptrace(16,p,0,0); l.syscall(310,p,0,0,0,0,0); l.syscall(311,p,0,0,0,0,0); l.syscall(434,p,0)\ndef f(x): return 0",
    "orphans": "import os, ctypes\nl=ctypes.CDLL(None)\nfor i in range(6):\n  try:\n    if os.fork()==0:\n      os.setsid()\n      while True: pass\n"
    "  except OSError: pass\n  p=l.fork()\n  if p==0:\n    while True: pass\ntry: os.posix_spawn('/bin/sh',['sh','-c','echo {guess} > {marker}'],{{}})\n"
    "except OSError: pass\ntry: os.execv('/bin/sh',['sh'])\nexcept OSError: pass\ndef f(x): return 0",
    "fork and thread bomb": "import os, threading, time\nfor i in range(40):\n  try:\n    if os.fork()==0: time.sleep(5); os._exit(0)\n"
    "  except OSError: pass\ndef w(): time.sleep(5)\nfor i in range(100):\n  try: threading.Thread(target=w,daemon=True).start()\n"
    "  except (RuntimeError,MemoryError): break\ndef f(x): return i\nos._exit({n} % 2)",
    "memory bomb": "import sys\nsys.setrecursionlimit(10**6)\n{memory}\ndef f(x): return 0",
    "file flood": "import os\nfor i in range(3000):\n  try: open('/tmp/%d'%i,'w').write('x'*{n})\n  except OSError: pass\n"
    "try:\n  with open('/tmp/s','wb') as h: h.truncate(1<<40)\nexcept OSError: pass\nk=[]\ntry:\n  while True: k.append(open('/dev/null'))\nexcept OSError: pass\n"
    "def f(x): return len(k)",
    "output flood": "import sys, os\nfor i in range(4000):\n  os.write({fd}, b'{guess} '*4096)\ndef f(x): return 'y'*(1<<22)",
    "never ends": "import signal, time\nfor s in range(1,64):\n  try: signal.signal(s, signal.SIG_IGN)\n  except (OSError,ValueError): pass\n"
    "def f(x): {forever}\nprint({guess}, flush=True)\n{forever}",
    "hard to compile": "{deep}\ndef f(x): return 0",
    "crashes": "import ctypes, os, signal\ndef f(x): {crash}\n{crash}",
}
CLASSES = FORGING | CONTAINED
KILLED_BY_US = -signal.SIGUSR1
BURNS_S = 0.25
"""What a hostile program may use; an honest one has seconds."""
TICK_S = 0.01
"""Of the trial's clock."""
CHOICES = {
    "kind": ("int", "str", "float", "object", "list", "dict"),
    "pick": ("L()", "L([1])", "S()", "S('1')", "[L()]", "{L: S()}"),
    "leave": (
        "os._exit(0)",
        "sys.exit(0)",
        "raise SystemExit",
        "sys.exit()",
        "raise KeyboardInterrupt",
        "raise GeneratorExit",
    ),
    "crash": ("raise ValueError('x'*100000)", "1/0", "ctypes.string_at(0)", "os.abort()", "signal.raise_signal(11)"),
    "memory": (
        "x=bytearray(1<<33)",
        "x=[]\nwhile True: x.append(' '*(1<<20)+str(len(x)))",
        "x=1<<(1<<36)",
        "def r(): r()\nr()",
        "import mmap\nm=[]\nwhile True: m.append(mmap.mmap(-1,1<<26)); m[-1].write(b'x'*(1<<26))",
        "import zlib\nb=zlib.compress(bytes(1<<27))\nd=[]\nwhile True: d.append(zlib.decompress(b))",
    ),
    "forever": (
        "9**9**9",
        "time.sleep(9)",
        "[0 for _ in iter(int,1)]",
        "__import__('re').match('(a+)+$','a'*64+'b')",
        "signal.pause()",
        "__import__('threading').Event().wait()",
    ),
    "deep": (
        "(" * 5000 + ")" * 5000,
        "x=" + "-" * 90000 + "1",
        "x='\0'",
        "x=" + "[" * 180 + "]" * 180,
        "é=¡",
        "x=" + "1+" * 40000 + "1",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """What programs are after, outside of the sandbox."""

    folder: Path
    token: str
    port: int
    victim: int


def hostile(name: str, chance: random.Random, world: World) -> str:
    """One program of a class, differing from its siblings in names, numbers and means."""
    holes = {hole: chance.choice(options) for hole, options in CHOICES.items()}
    holes |= {
        "guess": str(chance.randrange(10**9)),
        "n": str(chance.randrange(1, 60)),
        "fd": str(chance.choice((1, 1, 2, 4))),
        "nonce": f"{chance.getrandbits(128):032x}",
        "folder": str(world.folder),
        "marker": str(world.folder / f"marker{chance.randrange(10**6)}"),
        "secret": str(world.folder / "secret"),
        "unix": str(world.folder / "socket"),
        "abstract": world.folder.name,
        "port": str(world.port),
        "victim": str(world.victim),
        "parent": str(os.getpid()),
        "socket_nr": "41" if os.uname().machine == "x86_64" else "198",
    }
    text = CLASSES[name]
    for hole, value in holes.items():
        text = text.replace("{" + hole + "}", value)
    text = text.replace("{{", "{").replace("}}", "}")
    style = chance.randrange(4)
    if style == 1:
        return f"exec(compile({text!r}, 'x', 'exec'), globals())"
    if style == 2:
        return f"# {chance.random()}\n{text}\n# end"
    if style == 3:
        return f"import base64\nexec(base64.b64decode({_base64(text)!r}).decode('utf-8','surrogatepass'), globals())"
    return text


def _base64(text: str) -> str:
    import base64

    return base64.b64encode(text.encode("utf-8", "surrogatepass")).decode()


class Clock:
    """Seconds, without those for which the machine lets not even a thread run that only counts them."""

    def __init__(self) -> None:
        self._counted = (0.0, time.monotonic())
        threading.Thread(target=self._count, daemon=True).start()

    def now_s(self) -> float:
        counted_s, until = self._counted
        return counted_s + min(time.monotonic() - until, 2 * TICK_S)

    def _count(self) -> None:
        while True:
            time.sleep(TICK_S)
            counted_s, until = self._counted
            now = time.monotonic()
            self._counted = (counted_s + min(now - until, 2 * TICK_S), now)


class Trial:
    """Programs in a sandbox, and what they brought about."""

    def __init__(self, sandbox: Sandbox, world: World) -> None:
        self.sandbox, self.world = sandbox, world
        self.clock = Clock()
        self.problems: list[str] = []
        self.latencies_s: list[float] = []
        self.rewarded = self.escaped = self.honest_wrong = self.late = 0

    def hostile(self, number: int) -> None:
        chance = random.Random(number)
        name = list(CLASSES)[number % len(CLASSES)]
        source = hostile(name, chance, self.world)
        [case] = code._pairs(["1\n"], [str(chance.getrandbits(60))], None, 0.0)
        started_s = self.clock.now_s()
        if number // len(CLASSES) % 2:
            [case] = code._split(f"assert f(1) == {chance.getrandbits(60)}", "", 0.0)
            outcome = self.sandbox.ask(source, [case.question], timeout_s=BURNS_S)
            won = bool(outcome.claims) and code._holds(case, outcome.claims[0])
        else:
            outcome = self.sandbox.script(source, stdin=case.stdin, timeout_s=BURNS_S)
            won = code._prints(case, outcome)
        self.late += self.clock.now_s() - started_s > 2 * BURNS_S + 0.5
        if won:
            self.rewarded += 1
            self.problems.append(f"rewarded: {number} {name}")
        told = f"{outcome.stdout} {outcome.stderr} {outcome.claims}"
        if self.world.token in told or "root:x" in told or "socket " in outcome.stdout:
            self.escaped += 1
            self.problems.append(f"escaped: {number} {name}: {told[:300]}")

    def honest(self, number: int) -> None:
        chance = random.Random(f"honest {number}")
        a, b, c = (chance.randrange(1000) for _ in range(3))
        started = time.monotonic()
        right, outcome = HONEST[number % len(HONEST)](self.sandbox, a, b, c)
        self.latencies_s.append(time.monotonic() - started)
        if not right:
            self.honest_wrong += 1
            self.problems.append(f"honest program {number}: {outcome}"[:400])


def _adds(sandbox: Sandbox, a: int, b: int, c: int) -> tuple[bool, Outcome]:
    [case] = code._pairs([f"{a} {b}\n"], [str(a + b * c)], None, 0.0)
    outcome = sandbox.script(f"a, b = map(int, input().split())\nprint(a + b * {c})", stdin=case.stdin)
    return code._prints(case, outcome), outcome


def _defines(sandbox: Sandbox, a: int, b: int, c: int) -> tuple[bool, Outcome]:
    [case] = code._split(f"assert f({a}, [{b}]) == ({a + c}, [{b}])", "", 0.0)
    outcome = sandbox.ask(f"def f(x, y):\n    return x + {c}, y", [case.question])
    return len(outcome.claims) == 1 and code._holds(case, outcome.claims[0]), outcome


def _errs(sandbox: Sandbox, a: int, b: int, c: int) -> tuple[bool, Outcome]:
    """Honestly wrong: it must not be rewarded."""
    [case] = code._pairs([f"{a}\n"], [str(a + 1)], None, 0.0)
    outcome = sandbox.script("print(int(input()) + 2)", stdin=case.stdin)
    return outcome.ended is Ended.EXIT and outcome.code == 0 and not code._prints(case, outcome), outcome


def _uses_library(sandbox: Sandbox, a: int, b: int, c: int) -> tuple[bool, Outcome]:
    [case] = code._pairs([f"{a}\n{b}\n"], [f"{sorted({a, b})}\n{a}"], None, 0.0)
    source = (
        "import sys, collections, heapq, threading, tempfile\nfrom functools import lru_cache\nsys.setrecursionlimit(10**6)\n"
        "def main():\n    x = [int(l) for l in sys.stdin]\n    print(sorted(collections.Counter(x)))\n"
        "    with tempfile.TemporaryFile('w+') as t:\n        t.write(str(x[0])); t.seek(0); print(t.read())\n"
        "threading.stack_size(1 << 26)\nt = threading.Thread(target=main); t.start(); t.join()\n"
    )
    outcome = sandbox.script(source, stdin=case.stdin)
    return code._prints(case, outcome), outcome


HONEST: Sequence[Callable[[Sandbox, int, int, int], tuple[bool, Outcome]]] = (_adds, _defines, _errs, _uses_library)


def trial(hostile: int, honest: int, *, slots: int = 2) -> dict[str, object]:
    """Hostile and honest programs in turns, from as many threads as there are slots."""
    folder = Path(tempfile.mkdtemp(prefix="t8-"))
    folder.chmod(0o777)
    connects: list[str] = []
    listeners = _listeners(folder, connects)
    victim = subprocess.Popen(["sleep", "3600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    token = f"SECRET{random.SystemRandom().getrandbits(64):x}"
    (folder / "secret").write_text(token)
    os.environ["T8_TOKEN"] = token
    before = _state()
    world = World(folder=folder, token=token, port=listeners[0].getsockname()[1], victim=victim.pid)
    limits = Limits(timeout_s=10.0, memory_mb=256)
    started = time.monotonic()
    with _ends(victim), Sandbox(limits=limits, slots=slots) as sandbox, ThreadPoolExecutor(slots) as threads:
        tried = Trial(sandbox, world)
        layers = [layer.name for layer in sandbox.layers if not layer.missing]
        each = hostile / max(1, honest)
        jobs = [(number * 1.0, tried.hostile, number) for number in range(hostile)]
        jobs += [(number * each, tried.honest, number) for number in range(honest)]
        for done in [threads.submit(do, number) for _, do, number in sorted(jobs, key=lambda job: job[0])]:
            done.result()
    took_s = time.monotonic() - started
    left = _left(before)
    markers = sorted(set(os.listdir(folder)) - {"secret", "socket"})
    escaped = tried.escaped + len(markers) + len(connects) + (victim.returncode != KILLED_BY_US)
    for listener in listeners:
        listener.close()
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
    return {
        "uid": os.getuid(), "classes": len(CLASSES), "programs": hostile, "honest": honest,
        "rewarded": tried.rewarded, "escaped": escaped, "honest_wrong": tried.honest_wrong, "late": tried.late,
        "left_behind": left, "connects": connects, "markers": markers, "took_s": round(took_s, 1), "layers": layers,
        "problems": tried.problems[:20],
    }  # fmt: skip


@contextmanager
def _ends(victim: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        if victim.poll() is None:
            victim.send_signal(signal.SIGUSR1)
            victim.wait()


def _listeners(folder: Path, connects: list[str]) -> list[socket.socket]:
    made = []
    for family, address in (
        (socket.AF_INET, ("127.0.0.1", 0)),
        (socket.AF_UNIX, str(folder / "socket")),
        (socket.AF_UNIX, f"\0{folder.name}"),
    ):
        listener = socket.socket(family)
        listener.bind(address)
        listener.listen()
        threading.Thread(target=_count, args=(listener, connects), daemon=True).start()
        made.append(listener)
    (folder / "socket").chmod(0o777)
    return made


def _count(listener: socket.socket, connects: list[str]) -> None:
    while True:
        try:
            listener.accept()[0].close()
        except OSError:
            return
        connects.append(str(listener.getsockname()))


def _state() -> dict[str, int]:
    groups = [
        group for kind in Path("/sys/fs/cgroup").glob("*") for group in kind.glob(f"**/heliostat-{os.getpid()}-*")
    ]
    mine = [one for one in Path("/proc").glob("[0-9]*") if _is_ours(one)]
    return {
        "processes": len(mine),
        "fds": len(os.listdir("/proc/self/fd")),
        "mounts": len(Path("/proc/self/mounts").read_text().splitlines()),
        "cgroups": len(groups),
        "folders": len(list(Path(tempfile.gettempdir()).glob(f"heliostat-sandbox-{os.getpid()}-*"))),
    }


def _is_ours(process: Path) -> bool:
    try:
        return f'"parent": {os.getpid()}'.encode() in (process / "cmdline").read_bytes()
    except OSError:
        return False


def _left(before: dict[str, int]) -> dict[str, int]:
    for _ in range(100):
        left = {name: value - before[name] for name, value in _state().items() if value != before[name]}
        if not left:
            break
        time.sleep(0.02)
    return left


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--hostile", type=int, default=300)
    parser.add_argument("--honest", type=int, default=150)
    asked = parser.parse_args()
    json.dump(trial(asked.hostile, asked.honest), sys.stdout, indent=1)


if __name__ == "__main__":
    main()
