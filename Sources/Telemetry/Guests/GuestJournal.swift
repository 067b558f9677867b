import Foundation
import Platform

/// How many errors a guest's journal gets, through `journalctl` in the guest: asked once a minute, each time after where the last look ended.
struct GuestJournal {
    static let everyMs = 60_000.0
    /// Errors of a minute that are counted.
    static let most = 200
    private static let cursorMark = "-- cursor: "

    private var cursor = ""
    private var lookedAt: MonotonicTime?
    private var isAbsent = false

    func isDue(_ now: MonotonicTime) -> Bool {
        guard !isAbsent else { return false }
        return lookedAt.map { now.milliseconds(since: $0) >= Self.everyMs } ?? true
    }

    /// At most 400 characters a line, 64 KiB in all, 3 s; 127: there is no journal.
    private static let script = """
        command -v journalctl >/dev/null || exit 127
        timeout 3 journalctl -q -b -p err --no-pager -o short-iso --show-cursor -n "$1" ${2:+--after-cursor="$2"} 2>/dev/null | cut -c1-400 | tail -c 65536
        """

    /// Errors a second since the last look; nil at the first one, and without a journal.
    mutating func look(_ channel: AgentChannel, _ now: MonotonicTime) throws -> Double? {
        let before = lookedAt, known = cursor
        lookedAt = now
        let result = try channel.run(Self.script, [known.isEmpty ? "1" : "\(Self.most)", known])
        isAbsent = result.status == 127
        guard result.status == 0 else { return nil }
        let (lines, end) = Self.parse(result.output)
        // Without a new entry there need not be a new end.
        if let end { cursor = end }
        guard let before, !known.isEmpty else { return nil }
        return Double(lines.count) / max(1, now.milliseconds(since: before) / 1000)
    }

    /// The last errors since the guest's boot; nil: it has no journal.
    static func last(_ channel: AgentChannel, _ count: Int) throws -> [String]? {
        let result = try channel.run(script, ["\(count)", ""])
        return result.status == 0 ? parse(result.output).lines : nil
    }

    /// Entries, and the cursor behind them; one of a strange form is not given back to the guest's shell, though it is the guest's own.
    static func parse(_ output: String) -> (lines: [String], cursor: String?) {
        var lines = output.split(separator: "\n").map(String.init)
        var end: String?
        if let last = lines.last, last.hasPrefix(cursorMark) {
            lines.removeLast()
            let text = last.dropFirst(cursorMark.count)
            if text.count <= 300, text.allSatisfy({ $0.isASCII && ($0.isLetter || $0.isNumber || "=;_-".contains($0)) }) { end = String(text) }
        }
        return (lines, end)
    }
}
