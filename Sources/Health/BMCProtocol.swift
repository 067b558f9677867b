import Configuration
import ControlProtocol

// What the service and its helper process (`shadow-virt worker bmc`) say to each other: one request line, one reply line, JSON, on a
// stream socket. The request holds the password, which therefore stands in neither the arguments nor the environment.

/// One reading that the helper is to make.
struct BMCRequest: Codable, Sendable {
    /// ADDRESS:PORT; nil: in band.
    var host: String?
    var session = BMCSession.lan20
    var user = ""
    var password = ""
    /// K_g; nil: none.
    var key: [UInt8]?
    var authentication = BMCAuthentication.md5
    var driver = BMCDriver.openipmi
    /// Nil: the driver's own.
    var device: String?
    var privilege = BMCSettings.Privilege.user.rawValue
    var cipherSuite = 3
    var workarounds: [BMCWorkaround] = []
    /// The helper's own folder for what it knows of the BMC's sensors, which takes a real BMC up to a minute to tell.
    var cacheDirectory: String
    /// Milliseconds that the BMC may be silent, and that the whole reading may take.
    var silenceLimitMs: Int
    var totalLimitMs: Int
    /// The end of the log as it is known; the log is read only when it differs. Nil: it is read in any case.
    var known: LogMark?
}

/// The end of an event log: what its last record is known by; nil for an empty log.
struct LogMark: Codable, Sendable, Equatable {
    var last: LogRecord.Identity?

    init(last: LogRecord?) { self.last = last?.identity }
}

/// One record of a BMC's event log (SEL) in FreeIPMI's terms; the numbers are those of the IPMI specification's tables and of
/// `ipmi_monitoring_offsets.h`.
struct LogRecord: Codable, Sendable, Equatable {
    var id: Int
    /// Seconds since 1970 by the BMC's clock, or since its start while that was not set; nil for records without.
    var time: UInt32?
    var sensor = ""
    var sensorNumber: Int?
    var sensorType: Int?
    var offsetType: Int?
    var offset: Int?
    var isAsserted = true
    var state = HealthState.unknown
    var text = ""

    /// What the BMC itself stored: names and judgements may be others tomorrow, after an update of its firmware or of somebody's rules.
    struct Identity: Codable, Sendable, Equatable {
        var id: Int
        var time: UInt32?
        var sensorNumber: Int?
        var sensorType: Int?
        var offset: Int?
        var isAsserted: Bool
    }

    var identity: Identity {
        Identity(id: id, time: time, sensorNumber: sensorNumber, sensorType: sensorType, offset: offset, isAsserted: isAsserted)
    }
}

/// One sensor, in the same terms.
struct SensorRecord: Codable, Sendable, Equatable {
    var id: Int
    var name: String
    var type: Int
    var state: HealthState
    var value: Double?
    var unit: String?
    /// How `bits` is meant, `IPMI_MONITORING_SENSOR_BITMASK_TYPE_…`; the same numbers as for a log record's `offsetType`.
    var bitsType: Int
    var bits: Int
    var reports: [String]
}

/// What came of it: a reading, or `failure`.
struct BMCReply: Codable, Sendable {
    var failure: BMCFailure?
    var sensors: [SensorRecord] = []
    /// The log's last records in its own order; nil: it ends as was known.
    var log: [LogRecord]?
    /// Older ones, which were left out.
    var olderRecords = 0
    /// The sensors could be read, but not the log.
    var logFailure: BMCFailure?
}

/// Why a BMC could not be read.
public struct BMCFailure: Codable, Error, Sendable, Equatable, CustomStringConvertible {
    public enum Kind: String, Codable, Sendable {
        /// Nothing answers: wrong address, network, BMC down, no driver.
        case unreachable
        /// It answers, and refuses user, password, privilege or cipher suite. Asking often may lock the account.
        case refused
        /// The reading did not end in its time.
        case timeLimit = "time_limit"
        case other
    }

    public var kind: Kind
    public var failure: ControlFailure

    init(_ kind: Kind, _ message: String, advice: String = "") {
        self.kind = kind
        failure = ControlFailure(message, advice: advice)
    }

    public var description: String { failure.description }

    /// When only the log failed.
    var ofLog: ControlFailure { ControlFailure("The sensors of the BMC can be read, its event log cannot: \(failure.message)", advice: failure.advice) }
}
