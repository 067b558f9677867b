import XCTest
@testable import Libvirt

final class MonitorWireTests: XCTestCase {
    func testRequests() throws {
        XCTAssertEqual(try MonitorWire.request(QueryStatus()), #"{"arguments":{},"execute":"query-status"}"#)
        XCTAssertEqual(try MonitorWire.request(MigrateSetCapabilities(["x-colo": true])),
                       #"{"arguments":{"capabilities":[{"capability":"x-colo","state":true}]},"execute":"migrate-set-capabilities"}"#)
        XCTAssertEqual(try MonitorWire.request(Migrate(uri: "unix:/run/w.sock")),
                       #"{"arguments":{"uri":"unix:/run/w.sock"},"execute":"migrate"}"#)
    }

    func testOnlySetParametersAreSent() throws {
        XCTAssertEqual(try MonitorWire.request(MigrateSetParameters(checkpointDelayMilliseconds: 10)),
                       #"{"arguments":{"x-checkpoint-delay":10},"execute":"migrate-set-parameters"}"#)
        XCTAssertEqual(try MonitorWire.request(MigrateSetParameters(maxBandwidth: 0, downtimeLimitMilliseconds: 300)),
                       #"{"arguments":{"downtime-limit":300,"max-bandwidth":0},"execute":"migrate-set-parameters"}"#)
    }

    func testAnswers() throws {
        let status = try MonitorWire.answer(QueryStatus.Answer.self, from: #"{"return":{"status":"colo","running":false,"x":1},"id":"libvirt-9"}"#,
                                            command: "query-status")
        XCTAssertEqual(status.status, "colo")
        XCTAssertFalse(status.running)
        _ = try MonitorWire.answer(EmptyAnswer.self, from: #"{"return":{},"id":"libvirt-1"}"#, command: "cont")
    }

    func testErrorObjectBecomesMonitorError() {
        let reply = #"{"id":"libvirt-3","error":{"class":"CommandNotFound","desc":"The command x has not been found"}}"#
        XCTAssertThrowsError(try MonitorWire.answer(EmptyAnswer.self, from: reply, command: "x")) { error in
            XCTAssertEqual(error as? MonitorError,
                           MonitorError(errorClass: "CommandNotFound", message: "The command x has not been found", command: "x"))
            XCTAssertEqual((error as? MonitorError)?.isCommandNotFound, true)
        }
    }

    func testAnswersOfAnotherShapeAreErrors() {
        for reply in ["", "{}", "[]", "null", #"{"return":[]}"#, #"{"return":{"status":1}}"#, #"{"error":7}"#] {
            XCTAssertThrowsError(try MonitorWire.answer(QueryStatus.Answer.self, from: reply, command: "query-status"), reply)
        }
    }

    func testMigrationStatistics() throws {
        let reply = """
            {"return":{"status":"active","setup-time":1,"total-time":12,"expected-downtime":300,"blocked-reasons":[],"ram":{"total":1,
            "postcopy-requests":0,"dirty-sync-count":2,"multifd-bytes":0,"pages-per-second":0,"page-size":4096,"remaining":3,"mbps":0.5,
            "transferred":4,"duplicate":5,"dirty-pages-rate":6,"skipped":0,"normal-bytes":7,"normal":8}}}
            """
        let answer = try MonitorWire.answer(QueryMigrate.Answer.self, from: reply, command: "query-migrate")
        XCTAssertEqual(answer.status, "active")
        XCTAssertEqual(answer.ram?.dirtyPagesPerSecond, 6)
        XCTAssertEqual(answer.ram?.megabitsPerSecond, 0.5)
        XCTAssertNil(answer.downtimeMilliseconds)
        XCTAssertNil(try MonitorWire.answer(QueryMigrate.Answer.self, from: #"{"return":{}}"#, command: "query-migrate").status)
    }

    func testJSONValuesKeepWhatTheyAre() throws {
        let json = #"{"a":[1,-1,18446744073709551615,0.5,true,null,"1"],"b":{}}"#
        let value = try JSONCoding.decode(JSONValue.self, from: json)
        XCTAssertEqual(value["a"]?.array, [.integer(1), .integer(-1), .unsigned(.max), .number(0.5), .bool(true), .null, .string("1")])
        XCTAssertEqual(value["b"], .object([:]))
        XCTAssertEqual(try JSONCoding.decode(JSONValue.self, from: JSONCoding.encode(value)), value)
    }
}
