import ControlProtocol
import XCTest
@testable import Orchestration

final class HardwareTroubleTests: XCTestCase {
    private func report(_ sensors: [SensorReading] = [], _ events: [HardwareEvent] = []) -> HealthReport {
        HealthReport(host: "a", time: "", bmc: BMCStatus(address: "local", isReachable: true), sensors: sensors, events: events)
    }

    private func sensor(_ state: HealthState, _ name: String = "CPU Temp") -> SensorReading {
        SensorReading(recordID: 1, name: name, type: "temperature", value: 93, unit: "C", state: state, reports: state == .nominal ? [] : ["Upper Critical"])
    }

    private func event(_ kind: HardwareEventKind, _ severity: HealthState, at seconds: Double, isAsserted: Bool = true, sensor: String = "DIMM A1") -> HardwareEvent {
        HardwareEvent(time: "", seconds: seconds, host: "a", sensor: sensor, kind: kind, severity: severity, isAsserted: isAsserted, text: "it", source: .log)
    }

    private func trouble(_ report: HealthReport?, kpis: [String: Double] = [:], now: Double = 5000, since: Double = 0) -> HardwareTrouble {
        HardwareTrouble(report, kpis: kpis, now: now, since: since)
    }

    func testSensors() {
        XCTAssertEqual(trouble(nil), HardwareTrouble())
        XCTAssertEqual(trouble(report([sensor(.nominal)])).pressure, 0)
        XCTAssertEqual(trouble(report([sensor(.nominal, "Fan"), sensor(.critical)])).critical, "CPU Temp: Upper Critical (93.0 C)")
        XCTAssertEqual(trouble(report([sensor(.warning)])), HardwareTrouble(warning: "CPU Temp: Upper Critical (93.0 C)"))
        XCTAssertEqual(trouble(report([sensor(.warning)])).pressure, 0.7)
    }

    func testEvents() {
        XCTAssertEqual(trouble(report([], [event(.uncorrectableECC, .warning, at: 4000)])).critical, "DIMM A1: it")
        XCTAssertEqual(trouble(report([], [event(.drivePredictiveFailure, .warning, at: 4000)])).pressure, 1)
        XCTAssertEqual(trouble(report([], [event(.correctableECC, .warning, at: 4000)])), HardwareTrouble(warning: "DIMM A1: it"))
        XCTAssertEqual(trouble(report([], [event(.uncorrectableECC, .critical, at: 1000)])).pressure, 0, "an hour old")
        XCTAssertEqual(trouble(report([], [event(.uncorrectableECC, .critical, at: 4000)]), since: 4000).pressure, 0, "an administrator knows it")
        XCTAssertEqual(trouble(report([], [event(.uncorrectableECC, .critical, at: 4000), event(.uncorrectableECC, .nominal, at: 4100, isAsserted: false)])).pressure, 0, "over")
        // The sensor itself says that it is well again.
        XCTAssertEqual(trouble(report([sensor(.nominal)], [event(.temperature, .critical, at: 4000, sensor: "CPU Temp")])).pressure, 0)
        XCTAssertEqual(trouble(report([sensor(.warning, "Bay 3")], [event(.drivePredictiveFailure, .warning, at: 4000, sensor: "Bay 3")])).critical, "Bay 3: it")
    }

    func testWhatTheKernelKnows() {
        XCTAssertEqual(trouble(nil, kpis: ["host_disk_smart_failed_count": 0, "host_ecc_uncorrected_per_second": 0]).pressure, 0)
        XCTAssertNotNil(trouble(nil, kpis: ["host_disk_smart_failed_count": 1]).critical)
        XCTAssertNotNil(trouble(nil, kpis: ["host_ecc_uncorrected_per_second": 0.2]).critical)
        XCTAssertEqual(trouble(nil, kpis: ["host_thermal_throttles_per_second": 3]).pressure, 0.7)
    }
}
