"""What the processes other than 0 do in an evaluation."""

from collections import deque
from typing import Any

from gpt_pjit.core.runtime import from_process_0
from gpt_pjit.evaluate.scorer import Request, Scorer, Ticking
from gpt_pjit.generate import Sampling, stream
from gpt_pjit.trained import load_trained


def follow(trained: Any = None, ticking: Ticking | None = None) -> None:
    """Computes with process 0 all that it orders, until it has finished: with the model `trained`,
    or the one that it orders to be loaded.
    """
    while True:
        name, given = from_process_0(None)
        match name:
            case "load":
                trained = load_trained(**given)
            case "score":
                requests = [Request(tuple(tokens), scored) for tokens, scored in given["requests"]]
                size = {"window": given["window"], "rows": given["rows"]}
                Scorer(trained, **size, ticking=ticking).compute(requests)
            case "stream":
                sampling = Sampling(*given.pop("sampling"))
                deque(stream(trained, sampling=sampling, **given), maxlen=0)
            case "end":
                return
