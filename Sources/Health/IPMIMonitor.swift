import CIPMIMonitoring
import ControlProtocol
import Glibc
import Platform

/// libipmimonitoring, for one BMC. Its calls wait for the BMC as long as the request allows. Not for several threads, and the log is to be
/// asked for once: the library (1.6.10) has no way to forget a call's records, the next one adds its own to them.
final class IPMIMonitor {
    /// The record after which there is no other (IPMI 2.0, 31.5, Get SEL Entry).
    private static let lastRecord: UInt32 = 0xFFFF

    private let request: BMCRequest
    private let context: ipmi_monitoring_ctx_t
    private let session: IPMISession

    init(_ request: BMCRequest) throws(BMCFailure) {
        self.request = request
        if let obstacle = InBandCheck(request).obstacle { throw obstacle }
        session = IPMISession(request)
        var code: Int32 = 0
        guard ipmi_monitoring_init(0, &code) == 0 else { throw request.failure(code: Int(code), text: Self.text(code)) }
        guard let context = ipmi_monitoring_ctx_create() else { throw BMCFailure(.other, "FreeIPMI cannot be started", advice: "Is this host out of memory?") }
        self.context = context
        guard ipmi_monitoring_ctx_sdr_cache_directory(context, request.cacheDirectory) == 0 else { throw failure() }
    }

    deinit { ipmi_monitoring_ctx_destroy(context) }

    /// All sensors that can be interpreted.
    func sensors() throws(BMCFailure) -> [SensorRecord] {
        for rules in Interpretation.sensors { try load(rules, ipmi_monitoring_ctx_sensor_config_file) }
        let count = session.use {
            ipmi_monitoring_sensor_readings_by_record_id(context, request.host, $0, request.workarounds.sensorFlags, nil, 0, nil, nil)
        }
        guard count >= 0 else { throw failure() }
        var sensors: [SensorRecord] = []
        for _ in 0..<count {
            sensors.append(currentSensor())
            guard ipmi_monitoring_sensor_iterator_next(context) > 0 else { break }
        }
        return sensors
    }

    /// The whole event log, in its own order.
    func log() throws(BMCFailure) -> [LogRecord] { try log(only: nil) }

    /// The last record of the event log; nil when that is empty.
    func logEnd() throws(BMCFailure) -> LogRecord? { try log(only: [Self.lastRecord]).last }

    private func log(only identifiers: [UInt32]?) throws(BMCFailure) -> [LogRecord] {
        for rules in Interpretation.log { try load(rules, ipmi_monitoring_ctx_sel_config_file) }
        var identifiers = identifiers ?? []
        let number = UInt32(identifiers.count)
        let count = session.use { session in
            identifiers.withUnsafeMutableBufferPointer { buffer in
                ipmi_monitoring_sel_by_record_id(context, request.host, session, request.workarounds.logFlags, number > 0 ? buffer.baseAddress : nil, number,
                                                 nil, nil)
            }
        }
        guard count >= 0 else { throw failure() }
        var records: [LogRecord] = []
        for _ in 0..<count {
            records.append(currentRecord())
            guard ipmi_monitoring_sel_iterator_next(context) > 0 else { break }
        }
        return records
    }

    // MARK: The library's iterators

    private func currentSensor() -> SensorRecord {
        var reports: [String] = []
        if var next = ipmi_monitoring_sensor_read_sensor_bitmask_strings(context) {
            while let text = next.pointee {
                reports.append(String(cString: text))
                next += 1
            }
        }
        let state = IPMINames.state(Int(ipmi_monitoring_sensor_read_sensor_state(context)))
        let value = currentValue()
        return SensorRecord(id: Int(ipmi_monitoring_sensor_read_record_id(context)), name: string(ipmi_monitoring_sensor_read_sensor_name(context)),
                            type: Int(ipmi_monitoring_sensor_read_sensor_type(context)), state: state, value: value,
                            unit: value == nil ? nil : IPMINames.unit(Int(ipmi_monitoring_sensor_read_sensor_units(context))),
                            bitsType: Int(ipmi_monitoring_sensor_read_sensor_bitmask_type(context)),
                            bits: Int(ipmi_monitoring_sensor_read_sensor_bitmask(context)), reports: reports.filter { $0 != "OK" })
    }

    private func currentValue() -> Double? {
        guard let place = ipmi_monitoring_sensor_read_sensor_reading(context) else { return nil }
        let type = ipmi_monitoring_sensor_reading_type(UInt32(clamping: ipmi_monitoring_sensor_read_sensor_reading_type(context)))
        let value: Double? = switch type {
        case IPMI_MONITORING_SENSOR_READING_TYPE_UNSIGNED_INTEGER8_BOOL: Double(place.loadUnaligned(as: UInt8.self))
        case IPMI_MONITORING_SENSOR_READING_TYPE_UNSIGNED_INTEGER32: Double(place.loadUnaligned(as: UInt32.self))
        case IPMI_MONITORING_SENSOR_READING_TYPE_DOUBLE: place.loadUnaligned(as: Double.self)
        default: nil
        }
        // JSON has no numbers that are none.
        return value?.isFinite == true ? value : nil
    }

    /// Calls that are not for this record's class answer -1 or nil.
    private func currentRecord() -> LogRecord {
        func number(_ value: Int32) -> Int? { value < 0 ? nil : Int(value) }
        var record = LogRecord(id: Int(ipmi_monitoring_sel_read_record_id(context)))
        var time: UInt32 = 0
        if ipmi_monitoring_sel_read_timestamp(context, &time) == 0 { record.time = time }
        record.state = IPMINames.state(Int(ipmi_monitoring_sel_read_sel_state(context)))
        guard ipmi_monitoring_sel_read_record_type_class(context) == Int32(IPMI_MONITORING_SEL_RECORD_TYPE_CLASS_SYSTEM_EVENT_RECORD.rawValue) else {
            record.text = "Record of the manufacturer's own"
            return record
        }
        record.sensor = string(ipmi_monitoring_sel_read_sensor_name(context))
        record.sensorNumber = number(ipmi_monitoring_sel_read_sensor_number(context))
        record.sensorType = number(ipmi_monitoring_sel_read_sensor_type(context))
        record.offsetType = number(ipmi_monitoring_sel_read_event_offset_type(context))
        record.offset = number(ipmi_monitoring_sel_read_event_offset(context))
        record.isAsserted = ipmi_monitoring_sel_read_event_direction(context) != Int32(IPMI_MONITORING_SEL_EVENT_DIRECTION_DEASSERTION.rawValue)
        record.text = string(ipmi_monitoring_sel_read_event_offset_string(context))
        return record
    }

    /// A BMC's strings are whatever its vendor wrote; the end of a line would forge one of ours.
    private func string(_ text: UnsafePointer<CChar>?) -> String {
        guard let text else { return "" }
        return String(cString: text).filter { !$0.isNewline }
    }

    // MARK: Errors and settings

    private static func text(_ code: Int32) -> String { ipmi_monitoring_ctx_strerror(code).map { String(cString: $0) } ?? "error \(code)" }

    private func failure() -> BMCFailure {
        let code = ipmi_monitoring_ctx_errnum(context)
        return request.failure(code: Int(code), text: Self.text(code))
    }

    /// The library takes rules from a file only; one in memory needs no place and is never stale.
    private func load(_ rules: String, _ call: (ipmi_monitoring_ctx_t?, UnsafePointer<CChar>?) -> Int32) throws(BMCFailure) {
        let bytes = Array(rules.utf8)
        let result: Int32
        do throws(SystemError) {
            let file = try memoryFile("interpretation", bytes: bytes.count)
            guard write(file.raw, bytes, bytes.count) == bytes.count else { throw SystemError("write", "interpretation") }
            result = call(context, "/proc/self/fd/\(file.raw)")
        } catch {
            throw BMCFailure(.other, "\(error)")
        }
        guard result == 0 else {
            throw BMCFailure(.other, "FreeIPMI does not understand its rules in \(Interpretation.folder) (\(Self.text(ipmi_monitoring_ctx_errnum(context))))",
                             advice: "Correct freeipmi_interpret_sensor.conf and freeipmi_interpret_sel.conf there")
        }
    }
}
