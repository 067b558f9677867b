import ControlProtocol
import XCTest
@testable import Metrics

extension Samples {
    /// A host with one sensor of each unit, one without a value and one that nobody judges.
    static func health(_ state: HealthState = .critical) -> HealthReport {
        let units = [("Inlet", "temperature", 41.5, "C"), ("Exhaust", "temperature", 104, "F"), ("Fan 1", "fan", 5200, "RPM"), ("12V", "voltage", 12.033, "V"),
                     ("PSU 1 A", "current", 1.5, "A"), ("PSU 1 W", "power_supply", 210, "W"), ("PWM", "fan", 35, "%")]
        var sensors = units.enumerated().map { place, sensor in
            SensorReading(recordID: place + 1, name: sensor.0, type: sensor.1, value: sensor.2, unit: sensor.3, state: sensor.0 == "Fan 1" ? .critical : .nominal)
        }
        sensors.append(SensorReading(recordID: 20, name: "Bay 3", type: "drive_slot", state: .warning, reports: ["Predictive Failure"]))
        sensors.append(SensorReading(recordID: 21, name: "Odd", type: "type_193", state: .unknown))
        var report = HealthReport(host: "a", time: "2024-05-01T10:00:09.000Z", state: state,
                                  bmc: BMCStatus(address: "192.0.2.9:623", isReachable: true, lastReading: "2024-05-01T10:00:05.000Z", readingMs: 412.5), sensors: sensors)
        report.troubles = ["drive_predictive_failure": 2]
        return report
    }
}

final class HealthMetricsTests: XCTestCase {
    private func lines(_ report: HealthReport?, _ prefix: String) -> [String] {
        ExpositionFormat.text.render(HealthMetrics.families(report)).split(separator: "\n").map(String.init).filter { $0.hasPrefix("shadowvirt_" + prefix) }
    }

    func testState() {
        XCTAssertEqual(lines(Samples.health(), "hardware_state"), [
            #"shadowvirt_hardware_state{state="nominal"} 0"#, #"shadowvirt_hardware_state{state="warning"} 0"#,
            #"shadowvirt_hardware_state{state="critical"} 1"#, #"shadowvirt_hardware_state{state="unknown"} 0"#,
        ])
        XCTAssertEqual(lines(Samples.health(), "bmc_reachable"), [#"shadowvirt_bmc_reachable{address="192.0.2.9:623"} 1"#])
        XCTAssertEqual(lines(Samples.health(), "bmc_reading_seconds"), ["shadowvirt_bmc_reading_seconds 0.4125"])
        XCTAssertEqual(lines(Samples.health(), "bmc_last_reading"), ["shadowvirt_bmc_last_reading_timestamp_seconds 1714557605"])
    }

    /// Each kind is there from the beginning: a counter that appears with its first event shows no increase.
    func testEvents() {
        let events = lines(Samples.health(), "hardware_events_total")
        XCTAssertEqual(events.count, HardwareEventKind.allCases.count)
        XCTAssertTrue(events.contains(#"shadowvirt_hardware_events_total{kind="drive_predictive_failure"} 2"#))
        XCTAssertTrue(events.contains(#"shadowvirt_hardware_events_total{kind="fan"} 0"#))
    }

    func testSensors() {
        let report = Samples.health()
        XCTAssertEqual(lines(report, "bmc_temperature_celsius"), [
            #"shadowvirt_bmc_temperature_celsius{sensor="Inlet",type="temperature",record="1"} 41.5"#,
            #"shadowvirt_bmc_temperature_celsius{sensor="Exhaust",type="temperature",record="2"} 40"#,
        ])
        XCTAssertEqual(lines(report, "bmc_level_ratio"), [#"shadowvirt_bmc_level_ratio{sensor="PWM",type="fan",record="7"} 0.35"#])
        let states = lines(report, "bmc_sensor_state")
        XCTAssertEqual(states.count, 8, "what nobody judges is absent")
        XCTAssertTrue(states.contains(#"shadowvirt_bmc_sensor_state{sensor="Fan 1",type="fan",record="3"} 2"#), "\(states)")
        XCTAssertTrue(states.contains(#"shadowvirt_bmc_sensor_state{sensor="Bay 3",type="drive_slot",record="20"} 1"#), "\(states)")
    }

    func testCeilingAndNothing() {
        var report = Samples.health()
        report.sensors = (0..<5000).map { SensorReading(recordID: $0, name: "S", type: "fan", state: .nominal) }
        XCTAssertEqual(lines(report, "bmc_sensor_state").count, HealthMetrics.mostSensors)
        report.bmc = nil
        XCTAssertEqual(HealthMetrics.families(report), [])
        XCTAssertEqual(HealthMetrics.families(nil), [])
    }
}
