//! The conformance suite of `Observer` on the log of requests.

use orion_core::testing;
use orion_logging::RequestLog;

#[test]
fn the_log_of_requests_takes_every_life_a_request_can_have() {
    testing::observer(&RequestLog::new());
}
