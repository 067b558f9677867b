import CIPMIMonitoring
import ControlProtocol

/// What an event or a sensor's state is about, from IPMI's numbers for it (IPMI 2.0, tables 42-1 to 42-3).
enum Classification {
    /// `type` is the sensor's, `offsetType` says which table `offset` is of (`IPMI_MONITORING_EVENT_OFFSET_TYPE_…`).
    static func kind(type: Int?, offsetType: Int?, offset: Int?) -> HardwareEventKind {
        guard let type else { return .other }
        switch ipmi_monitoring_event_offset_type(UInt32(clamping: offsetType ?? Int(IPMI_MONITORING_EVENT_OFFSET_TYPE_UNKNOWN.rawValue))) {
        case IPMI_MONITORING_EVENT_OFFSET_TYPE_REDUNDANCY: return .redundancyLost
        case IPMI_MONITORING_EVENT_OFFSET_TYPE_MEMORY: return memory(offset)
        case IPMI_MONITORING_EVENT_OFFSET_TYPE_DRIVE_SLOT: return drive(offset)
        case IPMI_MONITORING_EVENT_OFFSET_TYPE_PROCESSOR: return processor(offset)
        case IPMI_MONITORING_EVENT_OFFSET_TYPE_PREDICTIVE_FAILURE where isDrive(type): return .drivePredictiveFailure
        default: return kind(ofType: type)
        }
    }

    /// Of a sensor: what the first of its set bits that says something is about.
    static func kind(of sensor: SensorRecord) -> HardwareEventKind {
        let offsets = (0..<15).filter { sensor.bits & (1 << $0) != 0 }
        // The most serious first: an uncorrectable error is beside correctable ones.
        let kinds = offsets.map { kind(type: sensor.type, offsetType: sensor.bitsType, offset: $0) }
        let order: [HardwareEventKind] = [.uncorrectableECC, .driveFault, .drivePredictiveFailure, .correctableECC]
        return order.first(where: kinds.contains) ?? kinds.first { $0 != .other } ?? kind(ofType: sensor.type)
    }

    private static func isDrive(_ type: Int) -> Bool { type == Int(IPMI_MONITORING_SENSOR_TYPE_DRIVE_SLOT.rawValue) }

    private static func kind(ofType type: Int) -> HardwareEventKind {
        switch ipmi_monitoring_sensor_type(UInt32(clamping: type)) {
        case IPMI_MONITORING_SENSOR_TYPE_TEMPERATURE: .temperature
        case IPMI_MONITORING_SENSOR_TYPE_VOLTAGE, IPMI_MONITORING_SENSOR_TYPE_CURRENT: .voltage
        case IPMI_MONITORING_SENSOR_TYPE_FAN, IPMI_MONITORING_SENSOR_TYPE_COOLING_DEVICE: .fan
        case IPMI_MONITORING_SENSOR_TYPE_PROCESSOR: .processor
        case IPMI_MONITORING_SENSOR_TYPE_POWER_SUPPLY, IPMI_MONITORING_SENSOR_TYPE_POWER_UNIT: .powerSupply
        default: .other
        }
    }

    private static func memory(_ offset: Int?) -> HardwareEventKind {
        guard let offset else { return .other }
        switch ipmi_monitoring_event_offset_memory(UInt32(clamping: offset)) {
        case IPMI_MONITORING_EVENT_OFFSET_MEMORY_CORRECTABLE_MEMORY_ERROR, IPMI_MONITORING_EVENT_OFFSET_MEMORY_CORRECTABLE_MEMORY_ERROR_LOGGING_LIMIT_REACHED:
            return .correctableECC
        case IPMI_MONITORING_EVENT_OFFSET_MEMORY_UNCORRECTABLE_MEMORY_ERROR, IPMI_MONITORING_EVENT_OFFSET_MEMORY_PARITY,
             IPMI_MONITORING_EVENT_OFFSET_MEMORY_MEMORY_SCRUB_FAILED:
            return .uncorrectableECC
        case IPMI_MONITORING_EVENT_OFFSET_MEMORY_MEMORY_AUTOMATICALLY_THROTTLED, IPMI_MONITORING_EVENT_OFFSET_MEMORY_CRITICAL_OVERTEMPERATURE:
            return .temperature
        default: return .other
        }
    }

    private static func drive(_ offset: Int?) -> HardwareEventKind {
        guard let offset else { return .other }
        switch ipmi_monitoring_event_offset_drive_slot(UInt32(clamping: offset)) {
        case IPMI_MONITORING_EVENT_OFFSET_DRIVE_SLOT_PREDICTIVE_FAILURE: return .drivePredictiveFailure
        case IPMI_MONITORING_EVENT_OFFSET_DRIVE_SLOT_DRIVE_FAULT, IPMI_MONITORING_EVENT_OFFSET_DRIVE_SLOT_IN_FAILED_ARRAY,
             IPMI_MONITORING_EVENT_OFFSET_DRIVE_SLOT_IN_CRITICAL_ARRAY, IPMI_MONITORING_EVENT_OFFSET_DRIVE_SLOT_REBUILD_REMAP_ABORTED:
            return .driveFault
        default: return .other
        }
    }

    private static func processor(_ offset: Int?) -> HardwareEventKind {
        guard let offset else { return .processor }
        switch ipmi_monitoring_event_offset_processor(UInt32(clamping: offset)) {
        case IPMI_MONITORING_EVENT_OFFSET_PROCESSOR_THERMAL_TRIP, IPMI_MONITORING_EVENT_OFFSET_PROCESSOR_PROCESSOR_AUTOMATICALLY_THROTTLED:
            return .temperature
        default: return .processor
        }
    }
}
