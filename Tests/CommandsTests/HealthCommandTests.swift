import Foundation
import XCTest
@testable import Commands
@testable import ControlProtocol

final class HealthCommandTests: XCTestCase {
    private static let now = Date().timeIntervalSince1970

    private static func event(_ sensor: String, ago: Double, asserted: Bool = true) -> HardwareEvent {
        HardwareEvent(time: "2024-05-01T10:00:00.000Z", seconds: now - ago, host: "a", sensor: sensor, kind: .fan, severity: asserted ? .critical : .nominal,
                      isAsserted: asserted, text: "Lower Critical - going low", source: .log, recordID: 7)
    }

    private func report(_ state: HealthState, problem: ControlFailure? = nil) -> HealthReport {
        HealthReport(
            host: "a", time: "2024-05-01T10:00:09.000Z", state: state, reasons: state == .critical ? ["Fan 1: slow (400 RPM)"] : [],
            bmc: BMCStatus(address: "192.0.2.9:623", isReachable: problem == nil, problem: problem, since: "2024-05-01T09:00:00.000Z",
                           lastReading: "2024-05-01T10:00:05.000Z", readingMs: 412.3),
            sensors: [SensorReading(recordID: 1, name: "CPU Temp", type: "temperature", value: 45, unit: "C", state: .nominal),
                      SensorReading(recordID: 2, name: "Fan 1", type: "fan", value: 400, unit: "RPM", state: .critical, reports: ["slow"]),
                      SensorReading(recordID: 3, name: "12V", type: "voltage", value: 12.033, unit: "V", state: .nominal),
                      SensorReading(recordID: 4, name: "PSU\u{1B}[2J", type: "power_supply", state: .unknown)],
            events: [Self.event("Old", ago: 90_000), Self.event("Fan 1", ago: 30), Self.event("Fan 1", ago: 20, asserted: false)])
    }

    private func run(_ report: HealthReport, _ words: String...) throws -> Outcome {
        var response = ControlResponse()
        response.health = report
        let service = try FakeService(response)
        let outcome = Harness().run(["health"] + words + ["--socket", service.path])
        XCTAssertEqual(service.requests, [#"{"verb":"health"}"#])
        return outcome
    }

    func testText() throws {
        let outcome = try run(report(.critical))
        XCTAssertEqual(outcome.code, 2)
        XCTAssertEqual(outcome.out, """
            Host:    a
            State:   critical
            Reason:  Fan 1: slow (400 RPM)
            BMC:     192.0.2.9:623, reachable since 2024-05-01T09:00:00.000Z, last read at 2024-05-01T10:00:05.000Z in 412ms

            SENSOR    TYPE           READING  STATE     REPORT
            CPU Temp  temperature       45 C  nominal
            Fan 1     fan            400 RPM  critical  slow
            12V       voltage       12.033 V  nominal
            PSU?[2J   power_supply         -  unknown

            TIME                      SENSOR  KIND  SEVERITY  EVENT
            2024-05-01T10:00:00.000Z  Fan 1   fan   critical  Lower Critical - going low
            2024-05-01T10:00:00.000Z  Fan 1   fan   nominal   Lower Critical - going low (over)

            """)
        XCTAssertTrue(try run(report(.critical), "--events").out.contains("  Old     fan   critical"))
    }

    func testJSON() throws {
        let outcome = try run(report(.warning), "--format", "json")
        XCTAssertEqual(outcome.code, 0)
        let answer = try JSONDecoder().decode(HealthReport.self, from: Data(outcome.out.utf8))
        XCTAssertEqual(answer.state, .warning)
        XCTAssertEqual(answer.events.count, 3)
        for key in ["\"record_id\" : 7", "\"asserted\" : false", "\"unix_seconds\"", "\"reading_ms\" : 412.3", "\"reachable\" : true", "\"schema\" : 1"] {
            XCTAssertTrue(outcome.out.contains(key), key)
        }
    }

    func testABMCThatCannotBeRead() throws {
        let outcome = try run(report(.unknown, problem: ControlFailure("The BMC is silent", advice: "Kick it")))
        XCTAssertEqual(outcome.code, 1)
        XCTAssertTrue(outcome.err.contains("The BMC is silent") && outcome.err.contains("Kick it"), outcome.err)
        XCTAssertTrue(outcome.out.contains("not reachable since"), outcome.out)
        XCTAssertEqual(try run(report(.critical, problem: ControlFailure("The BMC is silent"))).code, 2)
    }

    func testNoBMC() throws {
        let outcome = try run(HealthReport(host: "a", time: "T"))
        XCTAssertEqual(outcome.code, 0)
        XCTAssertEqual(outcome.out, "Host:    a\nState:   unknown\n")
        XCTAssertTrue(outcome.err.contains("No BMC is configured on a"), outcome.err)
        XCTAssertEqual(try run(HealthReport(host: "a", time: "T"), "--quiet").err, "")
    }
}
