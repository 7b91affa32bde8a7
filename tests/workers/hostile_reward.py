"""A reward that does whatever a response asks for, and tells what it can see of the calls before."""

from __future__ import annotations

import ctypes
import gc
import os
import pickle
import random
import signal
import sys
import threading
import time


class Odd(BaseException):
    pass


class Lying(dict):
    def items(self):
        raise KeyError("items")


class NoFloat:
    def __float__(self):
        raise ArithmeticError("no number")


class NoRepr:
    def __repr__(self):
        raise ArithmeticError("no text")


async def later():
    return 1.0


def count():
    yield 1.0


KEPT = []


def world():
    """What a call can see of the calls before it."""
    import builtins
    import json

    import rewards.score

    descriptors = sorted(os.listdir("/proc/self/fd"))
    return {
        "globals": len(KEPT),
        "cwd": os.getcwd() != "/",
        "env": int("LEAKED" in os.environ),
        "path": sys.path.count("/leaked"),
        "threads": threading.active_count(),
        "descriptors": len(descriptors),
        "seeded": int(random.random() == random.Random(0).random()),
        "patched": int(rewards.score.judgement_of.__name__ != "judgement_of") + int(json.dumps.__name__ != "dumps"),
        "builtins": int(hasattr(builtins, "leaked")),
        "umask": os.umask(0o22) or os.umask(0o22),
        "signals": int(signal.getsignal(signal.SIGUSR1) is signal.SIG_IGN),
        "modules": int("leaked" in sys.modules),
        "nice": os.nice(0),
        "collector": int(gc.isenabled()),
        "limit": sys.getrecursionlimit(),
    }


def hostile(response, answer, **row):
    if response == "world":
        return world()
    if response == "honest":
        return 0.5
    if response == "keeps":
        KEPT.append(1)
        return len(KEPT)
    if response == "pickled":
        return pickle.loads(row["value"])
    if response == "leaks":
        import builtins
        import json

        import rewards.score

        KEPT.append(1)
        os.chdir("/")
        os.environ["LEAKED"] = "1"
        sys.path.insert(0, "/leaked")
        random.seed(0)
        threading.Thread(target=time.sleep, args=(1000,), daemon=True).start()
        threading.Thread(target=time.sleep, args=(1000,)).start()
        [os.open("/dev/null", os.O_RDONLY) for _ in range(500)]
        rewards.score.judgement_of = json.dumps = lambda *a, **k: 0.0
        builtins.leaked = 1
        os.umask(0)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        sys.modules["leaked"] = sys
        os.nice(3)
        gc.disable()
        sys.setrecursionlimit(12345)
        row["list"].append(1)
        row["new"] = 1
        return 1.0
    if response == "row":
        return {"list": len(row["list"]), "new": float("new" in row)}
    if response == "exits":
        raise SystemExit(0)
    if response == "interrupts":
        raise KeyboardInterrupt
    if response == "generator exit":
        raise GeneratorExit
    if response == "odd":
        raise Odd("odd")
    if response == "deep":
        return hostile(response, answer, **row)
    if response == "late":
        time.sleep(1.2)
        return 1.0
    if response == "loop":
        while True:
            pass
    if response == "blocks":
        for number in (signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, signal.SIG_IGN)
        time.sleep(1000)
    if response == "prints":
        for _ in range(100):
            sys.stdout.write("x" * 1_000_000)
        return 0.25
    if response == "segfault":
        ctypes.string_at(0)
    if response == "_exit":
        os._exit(0)
    if response == "stops":
        os.kill(os.getppid(), signal.SIGSTOP)
        time.sleep(1000)
    if response == "kills its parent":
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(1000)
    if response == "memory":
        return float(len(bytearray(2 << 30)))
    if response == "extra":
        return {"total": 1.0, "x" * 10_000_000: 1.0}
    if response == "orphan":
        if os.fork() == 0:
            os.setsid()
            if os.fork() == 0:
                time.sleep(1000.125)
            os._exit(0)
        return 0.75
    return {
        "coroutine": later,
        "generator": count,
        "lying": lambda: Lying(a=1),
        "no float": NoFloat,
        "no repr": NoRepr,
        "class": lambda: Odd,
        "cycle": lambda: KEPT.append(KEPT) or KEPT,
    }[response]()
