"""Runs the command line in forked children of a process that has imported everything.

A start of Python, torch and transformers costs many times what a small run does; a fork costs nothing. What the child
runs is the command line itself, in a process of its own, which can be killed. What a run would ask a fresh process, as
what transformers makes of the saved adapter, it asks itself, unless an engine is loaded that changes transformers.

One JSON object a line on standard input: {"args": [...], "out": path, "err": path} starts a child and answers its pid;
{"wait": pid} answers the exit code, negative for a signal.
"""

import json
import os
import resource
import sys


def preload() -> None:
    """Import what a run imports, without starting a thread."""
    import cma  # noqa: F401
    import datasets  # noqa: F401
    import esalign_torch  # noqa: F401
    import peft  # noqa: F401
    import transformers  # noqa: F401

    import esalign.commands.align  # noqa: F401
    from esalign.run import self_test, verify

    verify.call_apart = self_test.call_apart = call_here


def call_here(function, **arguments):
    """Do what `esalign.run.apart.call_apart` does, without its start of Python, torch, transformers and peft."""
    from esalign.errors import BackendError, EsalignError
    from esalign.run.apart import call_apart

    if {"vllm", "llama_cpp"} & sys.modules.keys():
        return call_apart(function, **arguments)
    try:
        return json.loads(json.dumps(function(**json.loads(json.dumps(arguments)))))
    except EsalignError as error:
        raise BackendError(str(error)) from None


def start(request: dict) -> int:
    """Fork a child that runs the command line."""
    pid = os.fork()
    if pid:
        return pid
    os.setsid()
    for path, number in ((request["out"], 1), (request["err"], 2)):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), number)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    if request.get("room"):
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["room"], request["room"]))
    sys.argv = ["esalign", *request["args"]]
    code = 1
    try:
        from esalign.cli import main

        main()
        code = 0
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else int(error.code is not None)
    except BaseException:  # noqa: BLE001  (as the interpreter does at its end)
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    return 0


def serve() -> None:
    """Answer requests until standard input ends."""
    preload()
    for line in sys.stdin:
        request = json.loads(line)
        if "wait" in request:
            _, status = os.waitpid(request["wait"], 0)
            answer = os.waitstatus_to_exitcode(status)
        else:
            answer = start(request)
        sys.stdout.write(f"{answer}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
