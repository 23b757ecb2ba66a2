"""A stand-in for a vLLM server: the paths and fields that `VLLMServer` uses, over the stand-in for the package.

What it answers was taken down from vLLM 0.32.0, with which the same tests run.
"""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import stand_in_vllm
import torch
from safetensors.torch import load_file


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self._answer({"/version": self.server.version, "/v1/models": self.server.models}[self.path])

    def do_POST(self) -> None:
        content = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.server.turn:
            self._answer(*self.server.paths[self.path](content))

    def _answer(self, content, status: int = 200) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_) -> None:
        pass


class Server(ThreadingHTTPServer):
    """scale_out: whether it was started with --enable-scale-out."""

    # A burst of requests waits, as it does before vLLM's.
    request_queue_size = 512

    def __init__(self, model: str, context: int, version: str = "0.32.0", *, scale_out: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.turn = threading.Lock()
        self.llm = stand_in_vllm.LLM(model, max_model_len=context, dtype="float32", kv_cache_memory_bytes=2**26)
        self.version = {"version": version}
        self.models = {"object": "list", "data": [{"id": model, "max_model_len": context}]}
        self.scale_out = scale_out
        self.paths = {
            "/collective_rpc": self._rpc,
            "/reset_prefix_cache": lambda _: ({"success": self.llm.reset_prefix_cache()},),
            "/inference/v1/generate": self._generate,
        }

    def _rpc(self, content):
        worker = self.llm.worker
        if content["method"] == "get_model_inspection":
            return ({"results": [str(worker.policy.lm)]},)
        assert content["method"] == "reload_weights"
        (place,) = content["kwargs"].values()
        assert list(content["kwargs"]) == ["weights_path"]
        worker.reload_weights(iter(load_file(f"{place}/model.safetensors").items()))
        return ({"results": [None]},)

    def _generate(self, content):
        if not self.scale_out:
            return {"error": {"message": "Scale-out endpoints are disabled. Restart with --enable-scale-out."}}, 403
        assert self.llm.cached_with == self.llm.worker.num_reloads, "the prefix cache is that of other weights"
        with torch.no_grad():
            found = self.llm._sample(content["token_ids"], stand_in_vllm.SamplingParams(**content["sampling_params"]))
        choice = {"index": 0, "finish_reason": found.finish_reason, "token_ids": found.token_ids}
        return ({"request_id": "1", "choices": [choice]},)


@contextmanager
def served(*arguments, **keywords) -> Iterator[str]:
    """Its address."""
    with Server(*arguments, **keywords) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
