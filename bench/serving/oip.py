"""The messages of the Open Inference Protocol's ModelInfer."""

from __future__ import annotations

from opara_server.rpc.descriptors import message_class

InferRequest = message_class("ModelInferRequest")
InferResponse = message_class("ModelInferResponse")
