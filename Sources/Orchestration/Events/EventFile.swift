import ControlProtocol
import Foundation
import Glibc
import Platform

/// The journal's two files, one JSON object a line: PATH, and PATH.1 with what came before.
///
/// Lines are whole, or the last one is cut off by a crash: it is taken away when the file is read. Not synced: what a loss of power takes are the
/// last seconds of a report, nothing that anything depends on.
final class EventFile: @unchecked Sendable {
    static let linesInFile = EventJournal.capacity / 2
    /// With short messages lines are the limit, with long ones this.
    static let bytesInFile = 2 << 20

    private let path: String
    private var lines = 0
    private var bytes = 0
    private var isFailing = false

    init(path: String) { self.path = path }

    /// Every event in both files, the oldest first. A line that is none is passed over.
    func load() throws -> [ServiceEvent] {
        let older = try read(path + ".1"), newer = try read(path)
        let whole = newer.text.lastIndex(of: UInt8(ascii: "\n")).map { $0 + 1 } ?? 0
        if whole < newer.text.count {
            Log.info("\(path): its last line was cut off; dropped")
            guard truncate(path, off_t(newer.start + whole)) == 0 else { throw SystemError("truncate", path) }
        }
        let events = [older.text[...], newer.text[..<whole]].map(decode)
        (lines, bytes) = (events[1].count, newer.start + whole)
        return events[0] + events[1]
    }

    private func decode(_ text: ArraySlice<UInt8>) -> [ServiceEvent] {
        text.split(separator: UInt8(ascii: "\n")).compactMap { try? ControlCodec.decode(ServiceEvent.self, from: Array($0)) }
            // Ours begin at 1 and never get far; with others there is no counting on.
            .filter { (1...1 << 48).contains($0.sequence) }
    }

    /// The end of a file, as much as one may have, and where it begins; nothing of one that is not there.
    private func read(_ path: String) throws -> (start: Int, text: [UInt8]) {
        let raw = Glibc.open(path, O_RDONLY | O_CLOEXEC | O_NOFOLLOW)
        if raw < 0, errno == ENOENT { return (0, []) }
        let file = try Descriptor(checking: raw, "open", path)
        var status = stat()
        guard fstat(file.raw, &status) == 0 else { throw SystemError("fstat", path) }
        // Twice: one batch may go past the limit.
        let start = max(0, Int(status.st_size) - 2 * Self.bytesInFile)
        var content = [UInt8](repeating: 0, count: Int(status.st_size) - start)
        var done = 0
        while done < content.count {
            let n = content.withUnsafeMutableBytes { buffer in
                retryingInterrupts { pread(file.raw, buffer.baseAddress.map { $0 + done }, buffer.count - done, off_t(start + done)) }
            }
            guard n >= 0 else { throw SystemError("pread", path) }
            if n == 0 { break }
            done += n
        }
        return (start, Array(content[..<done]))
    }

    /// Appends lines, in a file of its own when this one is full. A failure is reported once, and what it was about stays in memory only.
    func append(_ events: [ServiceEvent]) {
        do {
            if lines >= Self.linesInFile || bytes >= Self.bytesInFile {
                guard rename(path, path + ".1") == 0 || errno == ENOENT else { throw SystemError("rename", path) }
                (lines, bytes) = (0, 0)
            }
            try write(events.flatMap { try ControlCodec.encode($0) + [UInt8(ascii: "\n")] })
            lines += events.count
            isFailing = false
        } catch {
            if !isFailing { Log.warning("The journal of events: \(error). Events are kept in memory until that is mended") }
            isFailing = true
        }
    }

    private func write(_ text: [UInt8]) throws {
        let file = try Descriptor(checking: Glibc.open(path, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC | O_NOFOLLOW, 0o640), "open", path)
        var done = 0
        while done < text.count {
            let n = text.withUnsafeBytes { buffer in
                retryingInterrupts { Glibc.write(file.raw, buffer.baseAddress.map { $0 + done }, buffer.count - done) }
            }
            guard n > 0 else {
                let error = SystemError("write", path)
                // Half a line would swallow the next one.
                ftruncate(file.raw, off_t(bytes))
                throw error
            }
            done += n
        }
        bytes += text.count
    }
}
