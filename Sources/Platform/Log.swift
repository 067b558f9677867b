import Foundation
import Glibc

/// Messages to stderr, one line each, by audience: error = an administrator must act; warning = something degraded;
/// info = life-cycle, once; debug = for developers. Under systemd the lines carry `<N>` priorities that journald reads.
public enum Log {
    public enum Level: Int, Comparable, Sendable {
        case error = 3, warning = 4, info = 6, debug = 7
        public static func < (a: Level, b: Level) -> Bool { a.rawValue < b.rawValue }
        /// By its name in the configuration; nil for any other word.
        public init?(named name: String) {
            guard let level = [Level.error, .warning, .info, .debug].first(where: { $0.name == name }) else { return nil }
            self = level
        }
        var name: String {
            switch self {
            case .error: "error"
            case .warning: "warning"
            case .info: "info"
            case .debug: "debug"
            }
        }
    }

    public static let environmentKey = "SHADOW_VIRT_LOG"

    /// The most talkative level that is printed; from `environmentKey` (error, warning, info, debug), else info.
    public static var threshold: Level {
        get { limit.read { $0 } }
        set { limit.change { $0 = newValue } }
    }
    private static let limit = Guarded(Level(named: ProcessInfo.processInfo.environment[environmentKey] ?? "") ?? .info)

    /// Whether stderr is the journal's own stream: `JOURNAL_STREAM` is inherited, but holds only for the descriptor whose device and inode it names (systemd.exec(5)).
    private static let underJournal = isJournal(2, stream: ProcessInfo.processInfo.environment["JOURNAL_STREAM"])

    static func isJournal(_ descriptor: Int32, stream: String?) -> Bool {
        let numbers = (stream ?? "").split(separator: ":").map { UInt64($0) }
        var status = stat()
        guard numbers.count == 2, fstat(descriptor, &status) == 0 else { return false }
        return numbers == [UInt64(status.st_dev), UInt64(status.st_ino)]
    }

    public static func error(_ message: @autoclosure () -> String) { write(.error, message) }
    public static func warning(_ message: @autoclosure () -> String) { write(.warning, message) }
    public static func info(_ message: @autoclosure () -> String) { write(.info, message) }
    public static func debug(_ message: @autoclosure () -> String) { write(.debug, message) }

    private static func write(_ level: Level, _ message: () -> String) {
        guard level <= threshold else { return }
        // One write a line, so that lines of several processes on one stderr never mix; newlines would forge lines.
        let text = message().replacingOccurrences(of: "\n", with: "\\n")
        let line = underJournal
            ? "<\(level.rawValue)>\(text)\n"
            : "\(Timestamp.now) \(level.name): \(text)\n"
        _ = Array(line.utf8).withUnsafeBytes { bytes in
            retryingInterrupts { Glibc.write(2, bytes.baseAddress, bytes.count) }
        }
    }
}

/// Wall-clock times as users see them: ISO 8601, UTC, milliseconds.
public enum Timestamp {
    public static var now: String {
        var time = timespec()
        clock_gettime(CLOCK_REALTIME, &time)
        return format(seconds: Int(time.tv_sec), milliseconds: Int(time.tv_nsec) / 1_000_000)
    }

    /// Unix time of a text that `format` made; nil of any other.
    public static func seconds(_ text: String) -> Double? {
        let numbers = text.split(whereSeparator: { !("0"..."9").contains($0) }).compactMap { Int32($0) }
        guard numbers.count == 7 else { return nil }
        var parts = tm()
        (parts.tm_year, parts.tm_mon, parts.tm_mday) = (numbers[0] - 1900, numbers[1] - 1, numbers[2])
        (parts.tm_hour, parts.tm_min, parts.tm_sec) = (numbers[3], numbers[4], numbers[5])
        let seconds = timegm(&parts)
        guard format(seconds: seconds, milliseconds: Int(numbers[6])) == text else { return nil }
        return Double(seconds) + Double(numbers[6]) / 1000
    }

    public static func format(seconds: Int, milliseconds: Int) -> String {
        var clock = time_t(seconds)
        var parts = tm()
        gmtime_r(&clock, &parts)
        func pad(_ value: Int32, _ width: Int = 2) -> String {
            let digits = String(value)
            return String(repeating: "0", count: max(0, width - digits.count)) + digits
        }
        return "\(pad(parts.tm_year + 1900, 4))-\(pad(parts.tm_mon + 1))-\(pad(parts.tm_mday))T"
            + "\(pad(parts.tm_hour)):\(pad(parts.tm_min)):\(pad(parts.tm_sec)).\(pad(Int32(milliseconds), 3))Z"
    }
}
