/// How a sensor, an event or a whole host is. `unknown`: not measured, or nobody could be asked.
public enum HealthState: String, Codable, Sendable, CaseIterable {
    case nominal, warning, critical, unknown

    /// What a summary goes by: the worst of several; unknown says nothing beside a known one.
    public static func worst(_ states: some Sequence<HealthState>) -> HealthState {
        let order: [HealthState] = [.critical, .warning, .nominal]
        let present = Set(states)
        return order.first(where: present.contains) ?? .unknown
    }
}

/// One sensor of the BMC at the last reading.
public struct SensorReading: Codable, Sendable, Equatable {
    /// In the BMC's repository of sensors.
    public var recordID: Int
    public var name: String
    /// `temperature`, `fan`, `power_supply`, …, or `type_N` for what the standard has no name for.
    public var type: String
    /// Absent for sensors that have states only, and where the BMC gave none.
    public var value: Double?
    /// `C`, `F`, `V`, `A`, `RPM`, `W`, `%`; absent without a value.
    public var unit: String?
    public var state: HealthState
    /// What it reports, in FreeIPMI's words; empty when there is nothing to report.
    public var reports: [String]

    enum CodingKeys: String, CodingKey {
        case name, type, value, unit, state, reports
        case recordID = "record_id"
    }

    public init(recordID: Int, name: String, type: String, value: Double? = nil, unit: String? = nil, state: HealthState, reports: [String] = []) {
        self.recordID = recordID
        self.name = name
        self.type = type
        self.value = value
        self.unit = unit
        self.state = state
        self.reports = reports
    }
}

/// What an event is about, as far as it matters to a guest on the host.
public enum HardwareEventKind: String, Codable, Sendable, CaseIterable {
    case temperature, fan, voltage, processor, other
    case powerSupply = "power_supply"
    case correctableECC = "correctable_ecc"
    case uncorrectableECC = "uncorrectable_ecc"
    case driveFault = "drive_fault"
    case drivePredictiveFailure = "drive_predictive_failure"
    case redundancyLost = "redundancy_lost"
}

/// Something happened to a host's hardware.
public struct HardwareEvent: Codable, Sendable, Equatable {
    public enum Source: String, Codable, Sendable {
        /// A record of the BMC's event log.
        case log
        /// A sensor got worse between two readings, and the log said nothing of it.
        case sensor
    }

    /// ISO 8601 UTC. The BMC's own time where that can be true, else when the event was first seen.
    public var time: String
    /// The same in seconds since 1970.
    public var seconds: Double
    /// The host that it happened on, by its `host_name`.
    public var host: String
    public var sensor: String
    public var kind: HardwareEventKind
    /// How bad that is: for an event that is over (`isAsserted` false) how bad it still is.
    public var severity: HealthState
    /// False: it is over.
    public var isAsserted: Bool
    /// In FreeIPMI's words, without the sensor's name.
    public var text: String
    public var source: Source
    /// In the event log; absent for a sensor's.
    public var recordID: Int?

    enum CodingKeys: String, CodingKey {
        case time, host, sensor, kind, severity, text, source
        case seconds = "unix_seconds"
        case isAsserted = "asserted"
        case recordID = "record_id"
    }

    public init(time: String, seconds: Double, host: String, sensor: String, kind: HardwareEventKind, severity: HealthState, isAsserted: Bool,
                text: String, source: Source, recordID: Int? = nil) {
        self.time = time
        self.seconds = seconds
        self.host = host
        self.sensor = sensor
        self.kind = kind
        self.severity = severity
        self.isAsserted = isAsserted
        self.text = text
        self.source = source
        self.recordID = recordID
    }

    /// It began, and it is bad: what a decision may rest on.
    public var isTrouble: Bool { isAsserted && (severity == .warning || severity == .critical) }
}

/// The BMC itself.
public struct BMCStatus: Codable, Sendable, Equatable {
    /// `local` or ADDRESS:PORT.
    public var address: String
    public var isReachable: Bool
    /// Why it cannot be read, and what to do; absent while it can.
    public var problem: ControlFailure?
    /// ISO 8601 UTC: since when it is as it is; absent before the first reading has ended.
    public var since: String?
    /// ISO 8601 UTC: the last reading that gave something.
    public var lastReading: String?
    /// How long that took, milliseconds.
    public var readingMs: Double?

    enum CodingKeys: String, CodingKey {
        case address, problem, since
        case isReachable = "reachable"
        case lastReading = "last_reading"
        case readingMs = "reading_ms"
    }

    public init(address: String, isReachable: Bool = false, problem: ControlFailure? = nil, since: String? = nil, lastReading: String? = nil, readingMs: Double? = nil) {
        self.address = address
        self.isReachable = isReachable
        self.problem = problem
        self.since = since
        self.lastReading = lastReading
        self.readingMs = readingMs
    }
}

/// The answer to `health`.
public struct HealthReport: Codable, Sendable, Equatable {
    public var schema = ControlProtocolVersion.schema
    public var host: String
    /// ISO 8601 UTC.
    public var time: String
    public var state: HealthState
    /// Why it is not nominal, one a sensor or event, worst first.
    public var reasons: [String]
    /// Absent: none is configured.
    public var bmc: BMCStatus?
    /// As of the last reading that gave something.
    public var sensors: [SensorReading]
    /// The last ones, oldest first.
    public var events: [HardwareEvent]
    /// How many events of trouble (`HardwareEvent.isTrouble`) of each kind were new since the service began; absent without a BMC.
    public var troubles: [String: UInt64]?

    public init(host: String, time: String, state: HealthState = .unknown, reasons: [String] = [], bmc: BMCStatus? = nil, sensors: [SensorReading] = [],
                events: [HardwareEvent] = []) {
        self.host = host
        self.time = time
        self.state = state
        self.reasons = reasons
        self.bmc = bmc
        self.sensors = sensors
        self.events = events
    }
}
