import Configuration
import ControlProtocol
import Platform

/// What `doctor` has to say about this host's BMC.
public enum BMCCheck {
    /// Milliseconds; whoever runs `doctor` waits. Enough for a BMC that has to describe its sensors first.
    static let limits = BMCReader.Limits(silence: 5000, total: 25_000)

    /// Makes one reading; nothing when no BMC is configured. A host without a working BMC can protect guests, so nothing here is `failed`.
    public static func findings(_ configuration: ServiceConfiguration) -> [Finding] {
        guard configuration.bmc.access != nil else { return [] }
        return [finding(configuration, BMCReader(configuration, limits: limits))]
    }

    static func finding(_ configuration: ServiceConfiguration, _ reader: BMCReader) -> Finding {
        let began = MonotonicTime.now
        let reply: BMCReply
        do throws(BMCFailure) {
            reply = try reader.read(known: nil)
        } catch {
            return Finding("bmc", .warning, error.failure.message, advice: error.failure.advice)
        }
        if let failure = reply.logFailure?.ofLog { return Finding("bmc", .warning, failure.message, advice: failure.advice) }
        let milliseconds = Int(MonotonicTime.now.milliseconds(since: began).rounded())
        let records = reply.olderRecords + (reply.log?.count ?? 0)
        let found = "\(configuration.bmc.name): \(reply.sensors.count) sensors, \(records) events logged, read in \(milliseconds) ms"
        let bad = reply.sensors.filter { $0.state == .critical || $0.state == .warning }
        guard !bad.isEmpty else { return Finding("bmc", .ok, found) }
        return Finding("bmc", .warning, "\(found); \(bad.map { Assessment.reason($0.reading) }.joined(separator: "; "))", advice: "See to the host's hardware")
    }
}
