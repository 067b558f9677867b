import Foundation
import Platform
import XCTest
@testable import Commands
@testable import ControlProtocol

final class EventsCommandTests: XCTestCase {
    private func event(_ sequence: UInt64, _ kind: EventKind, _ domain: String? = "web1", _ message: String = "something", _ details: [String: String] = [:]) -> ServiceEvent {
        ServiceEvent(sequence: sequence, time: "2024-05-01T10:00:0\(sequence % 10).000Z", kind: kind, domain: domain, uuid: nil, message: message, details: details)
    }

    private func answer(_ events: [ServiceEvent], last: Bool) -> ControlResponse {
        var response = ControlResponse()
        response.events = EventBatch(events, isLast: last)
        return response
    }

    func testTable() throws {
        let service = try FakeService([
            answer([event(1, .began), event(2, .swap, "database1", "The guest runs on b", ["outage_ms": "21", "epoch": "77", "role": "primary", "peer": "b"])], last: false),
            answer([], last: false), answer([event(3, .serviceStopping, nil, "bye\u{1B}[2J\nforged")], last: true),
        ])
        let outcome = Harness().run("events", "--socket", service.path)
        XCTAssertEqual(outcome.code, 0, outcome.err)
        XCTAssertEqual(outcome.out, """
            2024-05-01T10:00:01.000Z  began           web1      something
            2024-05-01T10:00:02.000Z  swap            database1  The guest runs on b (epoch 77, outage_ms 21)
            2024-05-01T10:00:03.000Z  service_stopping  -          bye?[2J?forged

            """)
        XCTAssertEqual(service.requests, [#"{"events":{},"verb":"events"}"#])
    }

    func testJSONLines() throws {
        let service = try FakeService(answer([event(1, .began, "a/b"), event(2, "drift", "db", "two\nlines", ["clock_ms": "3"])], last: true))
        let outcome = Harness().run("events", "db", "--since", "1h", "--socket", service.path, "--format", "json")
        XCTAssertEqual(outcome.out, """
            {"domain":"a/b","kind":"began","message":"something","sequence":1,"time":"2024-05-01T10:00:01.000Z"}
            {"details":{"clock_ms":"3"},"domain":"db","kind":"drift","message":"two\\nlines","sequence":2,"time":"2024-05-01T10:00:02.000Z"}

            """)
        XCTAssertEqual(service.requests, [#"{"domain":"db","events":{"since_seconds":3600},"verb":"events"}"#])
    }

    func testMistakes() throws {
        XCTAssertEqual(Harness().run("events", "--since", "yesterday").code, 64)
        XCTAssertEqual(Harness().run("events", "--since", "yesterday").err.components(separatedBy: "\n")[0],
                       "error: Option '--since': 'yesterday' is no time: use for instance 90s, 10m or 1h")
        XCTAssertEqual(Harness().run("events", "--format", "xml").code, 64)
        let refused = try FakeService(ControlResponse(failure: ControlFailure("16 clients follow the events already", advice: "End one of them")))
        let outcome = Harness().run("events", "--follow", "--socket", refused.path)
        XCTAssertEqual(outcome.code, 1)
        XCTAssertTrue(outcome.err.contains("16 clients follow"), outcome.err)
        XCTAssertEqual(Harness().run("events", "--follow", "--socket", "/nonexistent/x.sock").code, 1, "a service that never was there is not waited for")
        let wrong = try FakeService(ControlResponse(done: "hello"))
        XCTAssertEqual(Harness().run("events", "--socket", wrong.path).code, 1)
    }

    /// `head` has enough.
    func testReaderThatLeaves() throws {
        let service = try FakeService([answer([event(1, .began)], last: false), answer([event(2, .began)], last: true)])
        let harness = Harness()
        harness.outError = EPIPE
        let outcome = harness.run("events", "--follow", "--socket", service.path)
        XCTAssertEqual(outcome.code, 0, outcome.err)
        XCTAssertFalse(outcome.out.contains(":02.000Z"), outcome.out)
    }
}
