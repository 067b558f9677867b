import CIPMIMonitoring
import Configuration
import ControlProtocol

/// Names for the numbers of IPMI and its library.
enum IPMINames {
    /// Of sensor types (IPMI 2.0, table 42-3), by number from 1.
    private static let sensorTypes = [
        "temperature", "voltage", "current", "fan", "physical_security", "platform_security", "processor", "power_supply", "power_unit",
        "cooling_device", "other_units", "memory", "drive_slot", "post_memory_resize", "firmware_progress", "event_logging", "watchdog1",
        "system_event", "critical_interrupt", "button", "module_board", "microcontroller", "add_in_card", "chassis", "chip_set", "other_fru",
        "cable", "terminator", "boot_initiated", "boot_error", "os_boot", "os_critical_stop", "slot_connector", "acpi_power_state", "watchdog2",
        "platform_alert", "entity_presence", "monitor_asic", "lan", "management_subsystem", "battery", "session_audit", "version_change", "fru_state",
    ]

    static func sensorType(_ number: Int) -> String {
        sensorTypes.indices.contains(number - 1) ? sensorTypes[number - 1] : "type_\(number)"
    }

    static func unit(_ number: Int) -> String? {
        switch ipmi_monitoring_sensor_units(UInt32(clamping: number)) {
        case IPMI_MONITORING_SENSOR_UNITS_CELSIUS: "C"
        case IPMI_MONITORING_SENSOR_UNITS_FAHRENHEIT: "F"
        case IPMI_MONITORING_SENSOR_UNITS_VOLTS: "V"
        case IPMI_MONITORING_SENSOR_UNITS_AMPS: "A"
        case IPMI_MONITORING_SENSOR_UNITS_RPM: "RPM"
        case IPMI_MONITORING_SENSOR_UNITS_WATTS: "W"
        case IPMI_MONITORING_SENSOR_UNITS_PERCENT: "%"
        default: nil
        }
    }

    static func state(_ number: Int) -> HealthState {
        switch ipmi_monitoring_state(UInt32(clamping: number)) {
        case IPMI_MONITORING_STATE_NOMINAL: .nominal
        case IPMI_MONITORING_STATE_WARNING: .warning
        case IPMI_MONITORING_STATE_CRITICAL: .critical
        default: .unknown
        }
    }

    static func privilege(_ name: String) -> Int32 {
        switch BMCSettings.Privilege(rawValue: name) {
        case .admin: Int32(IPMI_MONITORING_PRIVILEGE_LEVEL_ADMIN.rawValue)
        case .operator: Int32(IPMI_MONITORING_PRIVILEGE_LEVEL_OPERATOR.rawValue)
        case .user, nil: Int32(IPMI_MONITORING_PRIVILEGE_LEVEL_USER.rawValue)
        }
    }

    static func authentication(_ kind: BMCAuthentication) -> Int32 {
        let number = switch kind {
        case .none: IPMI_MONITORING_AUTHENTICATION_TYPE_NONE
        case .straight: IPMI_MONITORING_AUTHENTICATION_TYPE_STRAIGHT_PASSWORD_KEY
        case .md2: IPMI_MONITORING_AUTHENTICATION_TYPE_MD2
        case .md5: IPMI_MONITORING_AUTHENTICATION_TYPE_MD5
        }
        return Int32(number.rawValue)
    }

    static func driver(_ driver: BMCDriver) -> Int32 {
        let number = switch driver {
        case .openipmi: IPMI_MONITORING_DRIVER_TYPE_OPENIPMI
        case .kcs: IPMI_MONITORING_DRIVER_TYPE_KCS
        case .ssif: IPMI_MONITORING_DRIVER_TYPE_SSIF
        }
        return Int32(number.rawValue)
    }
}

extension [BMCWorkaround] {
    /// `workaround_flags` of a session; the kinds of sessions use the same bits for different things (`ipmi_monitoring.h`).
    func flags(in session: BMCSession) -> UInt32 { reduce(0) { $0 | ($1.flag(in: session)?.rawValue ?? 0) } }

    /// Flags of a reading of the sensors. Those that cannot be interpreted are left out: nobody can tell whether they are good.
    var sensorFlags: UInt32 {
        reduce(IPMI_MONITORING_SENSOR_READING_FLAGS_IGNORE_NON_INTERPRETABLE_SENSORS.rawValue) { $0 | ($1.sensorFlag?.rawValue ?? 0) }
    }

    /// Flags of a reading of the log.
    var logFlags: UInt32 { reduce(0) { $0 | ($1.logFlag?.rawValue ?? 0) } }
}

extension BMCWorkaround {
    fileprivate func flag(in session: BMCSession) -> ipmi_monitoring_workaround_flags? {
        switch (session, self) {
        case (.lan20, .authcap): IPMI_MONITORING_WORKAROUND_FLAGS_PROTOCOL_VERSION_2_0_AUTHENTICATION_CAPABILITIES
        case (.lan20, .intel20): IPMI_MONITORING_WORKAROUND_FLAGS_PROTOCOL_VERSION_2_0_INTEL_2_0_SESSION
        case (.lan20, .supermicro20): IPMI_MONITORING_WORKAROUND_FLAGS_PROTOCOL_VERSION_2_0_SUPERMICRO_2_0_SESSION
        case (.lan20, .sun20): IPMI_MONITORING_WORKAROUND_FLAGS_PROTOCOL_VERSION_2_0_SUN_2_0_SESSION
        case (.lan20, .opensesspriv): IPMI_MONITORING_WORKAROUND_FLAGS_PROTOCOL_VERSION_2_0_OPEN_SESSION_PRIVILEGE
        case (.lan20, .integritycheckvalue): IPMI_MONITORING_WORKAROUND_FLAGS_PROTOCOL_VERSION_2_0_NON_EMPTY_INTEGRITY_CHECK_VALUE
        case (.lan20, .nochecksumcheck): IPMI_MONITORING_WORKAROUND_FLAGS_PROTOCOL_VERSION_2_0_NO_CHECKSUM_CHECK
        case (.lan15, .authcap): IPMI_MONITORING_WORKAROUND_FLAGS_PROTOCOL_VERSION_1_5_AUTHENTICATION_CAPABILITIES
        case (.lan15, .idzero): IPMI_MONITORING_WORKAROUND_FLAGS_PROTOCOL_VERSION_1_5_ACCEPT_SESSION_ID_ZERO
        case (.lan15, .forcepermsg): IPMI_MONITORING_WORKAROUND_FLAGS_PROTOCOL_VERSION_1_5_FORCE_PERMSG_AUTHENTICATION
        case (.lan15, .unexpectedauth): IPMI_MONITORING_WORKAROUND_FLAGS_PROTOCOL_VERSION_1_5_CHECK_UNEXPECTED_AUTHCODE
        case (.lan15, .endianseq): IPMI_MONITORING_WORKAROUND_FLAGS_PROTOCOL_VERSION_1_5_BIG_ENDIAN_SEQUENCE_NUMBER
        case (.lan15, .noauthcodecheck): IPMI_MONITORING_WORKAROUND_FLAGS_PROTOCOL_VERSION_1_5_NO_AUTH_CODE_CHECK
        case (.lan15, .nochecksumcheck): IPMI_MONITORING_WORKAROUND_FLAGS_PROTOCOL_VERSION_1_5_NO_CHECKSUM_CHECK
        case (.driver, .assumeio): IPMI_MONITORING_WORKAROUND_FLAGS_INBAND_ASSUME_IO_BASE_ADDRESS
        case (.driver, .spinpoll): IPMI_MONITORING_WORKAROUND_FLAGS_INBAND_SPIN_POLL
        default: nil
        }
    }

    fileprivate var sensorFlag: ipmi_monitoring_sensor_reading_flags? {
        switch self {
        case .discretereading: IPMI_MONITORING_SENSOR_READING_FLAGS_DISCRETE_READING
        case .ignorescanningdisabled: IPMI_MONITORING_SENSOR_READING_FLAGS_IGNORE_SCANNING_DISABLED
        case .assumebmcowner: IPMI_MONITORING_SENSOR_READING_FLAGS_ASSUME_BMC_OWNER
        case .assumemaxsdrrecordcount: IPMI_MONITORING_SENSOR_READING_FLAGS_ASSUME_MAX_SDR_RECORD_COUNT
        default: nil
        }
    }

    fileprivate var logFlag: ipmi_monitoring_sel_flags? {
        switch self {
        case .assumesystemevent: IPMI_MONITORING_SEL_FLAGS_ASSUME_SYSTEM_EVENT_RECORD
        case .assumemaxsdrrecordcount: IPMI_MONITORING_SEL_FLAGS_ASSUME_MAX_SDR_RECORD_COUNT
        default: nil
        }
    }
}
