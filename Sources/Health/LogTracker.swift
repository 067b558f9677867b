import ControlProtocol
import Foundation
import Platform

/// Which records of a BMC's event log are new, across restarts of the service. Identifiers are not enough: they begin anew when somebody clears the log, and a
/// full log wraps or stands still; so the last known record is compared as a whole.
struct LogTracker {
    /// What is kept on disk. Of another BMC than the present one it is worth nothing.
    private struct Saved: Codable {
        var bmc: String
        var mark: LogMark
    }

    private let path: String
    private let bmc: String
    /// Nil: nothing is known yet.
    private(set) var mark: LogMark?

    init(folder: String, bmc: String) {
        path = "\(folder)/log.json"
        self.bmc = bmc
        guard FileManager.default.fileExists(atPath: path) else { return }
        do {
            let saved = try JSONDecoder().decode(Saved.self, from: Data(contentsOf: URL(fileURLWithPath: path)))
            if saved.bmc == bmc { mark = saved.mark }
        } catch {
            Log.warning("Cannot read \(path) (\(error)): events of the BMC from before now are taken as known")
        }
    }

    /// The records of `log` after the last known one. A log that does not hold it was cleared, or wrapped past it: then all are new.
    /// Of a log that is seen for the first time none is.
    static func new(in log: [LogRecord], after mark: LogMark?) -> [LogRecord] {
        guard let mark else { return [] }
        guard let last = mark.last, let index = log.lastIndex(where: { $0.identity == last }) else { return log }
        return Array(log[(index + 1)...])
    }

    /// From now on `log` is known.
    mutating func advance(to log: [LogRecord]) {
        let end = LogMark(last: log.last)
        guard end != mark else { return }
        mark = end
        do {
            try DurableFile.write(json: Saved(bmc: bmc, mark: end), to: path)
        } catch {
            Log.warning("Cannot keep which events of the BMC are known (\(error)): after a restart they are reported again")
        }
    }
}
