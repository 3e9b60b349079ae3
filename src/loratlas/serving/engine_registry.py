"""Every engine there is, by the name that ``--for`` takes.

>>> engine_of("vllm").title
'vLLM'
>>> engine_of("vlm")
Traceback (most recent call last):
loratlas.errors.RequestError: Given: the engine 'vlm'. Found: engines are peft, vllm, sglang, tgi, lorax, \
tensorrt-llm, llama.cpp, ollama, mlx. Instead: vllm.
"""

from __future__ import annotations

from difflib import get_close_matches

from loratlas.errors import RequestError, printable
from loratlas.serving.engine import Engine
from loratlas.serving.engines.llama_cpp_engine import LlamaCpp, Ollama
from loratlas.serving.engines.mlx_engine import Mlx
from loratlas.serving.engines.peft_engine import Peft
from loratlas.serving.engines.sglang_engine import Sglang
from loratlas.serving.engines.stacked_layers import Lorax, Tgi
from loratlas.serving.engines.tensorrt_engine import TensorRtLlm
from loratlas.serving.engines.vllm_engine import Vllm

ENGINES: dict[str, Engine] = {
    engine.name: engine
    for engine in (Peft(), Vllm(), Sglang(), Tgi(), Lorax(), TensorRtLlm(), LlamaCpp(), Ollama(), Mlx())
}
"""Name → engine."""


def engine_of(name: str) -> Engine:
    """The engine of a name.

    Raises:
        RequestError: there is none; the message names the nearest one.
    """
    if name not in ENGINES:
        near = get_close_matches(name.lower(), ENGINES, n=1, cutoff=0.0)[0]
        raise RequestError(
            given=f"the engine {printable(name)!r}",
            found="engines are " + ", ".join(ENGINES),
            instead=near,
        )
    return ENGINES[name]
