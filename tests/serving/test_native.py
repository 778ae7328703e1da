"""The native front end, held to what test_server.py holds grpcio's to; and what only it promises."""

from typing import Any

import pytest

pytest.importorskip("atelier_native", reason="the native front end is not built here (native/)")

from tests.serving import test_server as cases
from tests.serving.native_server import native_serving
from tests.serving.test_server import (  # noqa: F401 - collected here too, over the other front end
    test_answers_come_in_request_order_with_names_and_probabilities,
    test_answers_tell_the_size_of_the_batch_that_they_ran_in,
    test_bad_request_gets_its_status_and_word_and_never_runs,
    test_broken_device_ends_the_server_with_an_error_and_loses_only_what_failed,
    test_call_without_a_message_is_a_bad_request,
    test_device_that_hangs_in_a_drain_makes_the_drain_a_failure,
    test_drain_answers_what_was_accepted_and_tells_others_to_retry,
    test_drain_that_takes_too_long_ends_with_an_error,
    test_failing_backend_is_internal_and_its_words_stay_inside,
    test_full_queue_refuses_with_a_hint_when_to_retry,
    test_get_model_describes_what_is_served,
    test_health_checks_that_never_send_a_message_are_ended_too,
    test_health_of_an_unknown_service_is_not_found,
    test_hung_device_ends_the_server_with_an_error,
    test_malformed_health_check_or_reflection_is_a_bad_request,
    test_message_over_the_limit_is_refused,
    test_of_too_many_calls_without_a_message_the_oldest_end,
    test_pictures_are_decoded_in_order,
    test_refused_request_leaves_nothing_of_its_message_behind,
    test_request_cancelled_by_its_client_is_not_executed,
    test_request_whose_deadline_passes_in_the_queue_is_never_executed,
    test_request_without_a_deadline_gets_the_servers,
    test_served_model_and_version_may_be_named,
    test_streams_that_never_send_a_message_are_ended_and_disturb_nobody,
    test_time_split_tells_waiting_from_running,
    test_unknown_method_is_unimplemented,
    test_watcher_of_health_hears_of_the_drain,
)


@pytest.fixture(autouse=True)
def native(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The cases serve by the native front end."""
    monkeypatch.setattr(cases, "serving", native_serving)
