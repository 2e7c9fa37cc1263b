"""The server half behind KServe: python kserve_server.py NAME SERVER.ONNX HTTP_PORT GRPC_PORT."""

import logging
import os
import sys

os.environ["ORT_DISABLE_TELEMETRY"] = "1"  # before the import, which decides
import onnxruntime
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer


class Half(Model):
    def __init__(self, name: str, path: str) -> None:
        super().__init__(name)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self.ready = True

    async def predict(self, payload: InferRequest, headers: object = None, response_headers: object = None):  # noqa: ARG002
        (logits,) = self.session.run(["logits"], {"coefficients": payload.inputs[0].as_numpy()})
        output = InferOutput("logits", list(logits.shape), "FP32", logits)
        if payload.from_grpc:  # REST makes of the array what the request asks for, gRPC cannot
            output.set_data_from_numpy(logits)
        return InferResponse(
            payload.id or "", self.name, [output],
            use_binary_outputs=payload.use_binary_outputs, requested_outputs=payload.request_outputs,
        )  # fmt: skip


if __name__ == "__main__":
    name, path, http_port, grpc_port = sys.argv[1:]
    logging.disable(logging.INFO)  # no line per request, as none of the others writes one
    server = ModelServer(http_port=int(http_port), grpc_port=int(grpc_port), workers=1, enable_latency_logging=False)
    server.start([Half(name, path)])
