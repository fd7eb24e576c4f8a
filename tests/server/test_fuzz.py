"""Requests made up from the server's own description: no answer is a 500, and each is as described."""

import pytest
import schemathesis
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
    unsupported_method,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    unsupported_method,
]
FEW, MANY = 20, 200


@pytest.fixture(scope="module", params=["plain", "with_book", "with_shelf"])
def served(request):
    return request.getfixturevalue(request.param)


def fuzz(served, examples):
    schema = schemathesis.openapi.from_url(f"{served.url}/openapi.json")
    seen = set()
    for operation in schema.get_all_operations():
        operation = operation.ok()

        @settings(max_examples=examples, derandomize=True, suppress_health_check=list(HealthCheck))
        @hypothesis_given(operation)
        def answer(case):
            body = case.body
            if isinstance(body, dict) and "model" in body and len(str(body)) % 4:
                # Most bodies should reach the model, and soon come back.
                body["model"] = served.model
                for name in ("max_tokens", "max_completion_tokens"):
                    if isinstance(body.get(name), int):
                        body[name] %= 50
                if isinstance(body.get("messages"), list):
                    body["messages"].append({"role": "user", "content": "Who planted trees?"})
            path = case.path_parameters or {}
            if "book_id" in path and len(str(case.query)) % 4:
                path["book_id"] = served.app.state.uploads.shelf.books()[0].id
            response = case.call(timeout=120)  # on a busy machine, twelve answers take their time
            case.validate_response(response, checks=CHECKS)
            seen.add((case.operation.path, response.status_code))

        answer()
    return seen


def hypothesis_given(operation):
    from hypothesis import given
    from hypothesis import strategies as st

    valid = operation.as_strategy()
    invalid = operation.as_strategy(generation_mode=schemathesis.GenerationMode.NEGATIVE)
    return given(case=st.one_of(valid, invalid) if operation.body else valid)


def test_no_request_makes_it_fail(served):
    seen = fuzz(served, FEW)
    if hasattr(served.app.state, "uploads"):
        assert {("/v1/books/{book_id}/ask", 200), ("/v1/books/{book_id}/text", 200), ("/v1/files", 200)} <= seen
    assert {("/v1/completions", 200), ("/v1/chat/completions", 200), ("/v1/completions", 400)} <= seen


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_request_of_many_makes_it_fail(served):
    fuzz(served, MANY)
