import ControlProtocol
import Foundation
import Platform

/// This host's hardware as its BMC sees it; nothing where no BMC is configured.
public enum HealthMetrics {
    typealias Sample = MetricFamily.Sample
    typealias Label = MetricFamily.Label

    /// The largest servers have some hundred; what reports more is out of order, and would cost Prometheus a series each.
    static let mostSensors = 1000

    /// `report`: of the last reading; nil: nobody knows.
    public static func families(_ report: HealthReport?) -> [MetricFamily] {
        guard let report, let bmc = report.bmc else { return [] }
        return [
            MetricFamily("shadowvirt_bmc_reachable", .gauge, "1: the BMC of this host could be read at the last try", [
                Sample(bmc.isReachable ? 1 : 0, labels: [Label("address", bmc.address)]),
            ]),
            MetricFamily("shadowvirt_bmc_last_reading_timestamp_seconds", .gauge, "When the BMC last gave something, as Unix time",
                         bmc.lastReading.flatMap(Timestamp.seconds).map { [Sample($0)] } ?? []),
            MetricFamily("shadowvirt_bmc_reading_seconds", .gauge, "How long that reading took", bmc.readingMs.map { [Sample($0 / 1000)] } ?? []),
            MetricFamily("shadowvirt_hardware_state", .gauge, "1 for the state that sensors and events of the hardware are in together, 0 for all others",
                         HealthState.allCases.map { Sample(report.state == $0 ? 1 : 0, labels: [Label("state", $0.rawValue)]) }),
            MetricFamily("shadowvirt_hardware_events_total", .counter, "New events of the BMC that are trouble, by kind, since the service began",
                         HardwareEventKind.allCases.map { Sample(Double(report.troubles?[$0.rawValue] ?? 0), labels: [Label("kind", $0.rawValue)]) }),
        ] + sensors(Array(report.sensors.prefix(mostSensors)))
    }

    private struct Quantity {
        var unit: String
        var name: String
        var help: String
        var convert: @Sendable (Double) -> Double = { $0 }
    }

    private static let quantities = [
        Quantity(unit: "C", name: "temperature_celsius", help: "Temperature"),
        Quantity(unit: "F", name: "temperature_celsius", help: "Temperature", convert: { ($0 - 32) / 1.8 }),
        Quantity(unit: "RPM", name: "fan_speed_rpm", help: "Speed of a fan"),
        Quantity(unit: "V", name: "voltage_volts", help: "Voltage"),
        Quantity(unit: "A", name: "current_amperes", help: "Current"),
        Quantity(unit: "W", name: "power_watts", help: "Power"),
        Quantity(unit: "%", name: "level_ratio", help: "What the sensor gives in per cent, as a part of 1", convert: { $0 / 100 }),
    ]

    private static func labels(_ sensor: SensorReading) -> [Label] {
        // Names need not be unique; record identifiers are.
        [Label("sensor", sensor.name), Label("type", sensor.type), Label("record", "\(sensor.recordID)")]
    }

    private static func sensors(_ sensors: [SensorReading]) -> [MetricFamily] {
        let state = MetricFamily("shadowvirt_bmc_sensor_state", .gauge, "0 nominal, 1 warning, 2 critical; absent where the BMC does not say", sensors.compactMap { sensor in
            let number: Double? = switch sensor.state {
            case .nominal: 0
            case .warning: 1
            case .critical: 2
            case .unknown: nil
            }
            return number.map { Sample($0, labels: labels(sensor)) }
        })
        var families: [MetricFamily] = []
        for quantity in quantities {
            let samples = sensors.compactMap { sensor in
                sensor.unit == quantity.unit ? sensor.value.map { Sample(quantity.convert($0), labels: labels(sensor)) } : nil
            }
            let name = "shadowvirt_bmc_\(quantity.name)"
            // A family stands once, whatever the units it came in.
            if let place = families.firstIndex(where: { $0.name == name }) {
                families[place].samples += samples
            } else {
                families.append(MetricFamily(name, .gauge, quantity.help + ", by sensor of the BMC", samples))
            }
        }
        return [state] + families
    }
}
