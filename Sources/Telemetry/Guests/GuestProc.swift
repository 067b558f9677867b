import Foundation

/// The files of /proc that are read inside a Linux guest, as proc(5) has them. What does not look like it is left out: it comes from a guest.
enum GuestProc {
    /// What the whole guest does.
    struct Tasks: Equatable {
        var load1m: Double?
        /// Processes and threads: those that run or could, all, and those that wait for storage.
        var running: Double?
        var all: Double?
        var blocked: Double?
        /// Processes and threads that began since the guest's start.
        var forks: UInt64?
    }

    /// `/proc/loadavg`: `0.20 0.18 0.12 1/80 11206`.
    static func add(loadavg text: String, to tasks: inout Tasks) {
        let words = text.split(whereSeparator: \.isWhitespace)
        guard words.count >= 4 else { return }
        tasks.load1m = Double(words[0]).flatMap { $0.isFinite && $0 >= 0 ? $0 : nil }
        let parts = words[3].split(separator: "/").compactMap { UInt32($0) }
        guard parts.count == 2 else { return }
        (tasks.running, tasks.all) = (Double(parts[0]), Double(parts[1]))
    }

    /// `/proc/stat`.
    static func add(stat text: String, to tasks: inout Tasks) {
        for line in text.split(separator: "\n") {
            let words = line.split(separator: " ")
            guard words.count == 2 else { continue }
            switch words[0] {
            case "procs_running": tasks.running = UInt32(words[1]).map(Double.init) ?? tasks.running
            case "procs_blocked": tasks.blocked = UInt32(words[1]).map(Double.init)
            case "processes": tasks.forks = UInt64(words[1])
            default: break
            }
        }
    }

    /// One line of `/proc/PID/stat`.
    struct Process: Equatable {
        var pid: Int
        var parent: Int
        var name: String
        var state: String
        var threads: Int
        /// User and system mode, seconds: USER_HZ is 100 on everything that runs libvirt.
        var cpuSeconds: Double
        var residentPages: UInt64
    }

    /// The name is between the first and the last parenthesis, and may itself hold any.
    static func process(_ line: Substring) -> Process? {
        guard let open = line.firstIndex(of: "("), let close = line.lastIndex(of: ")"), open < close,
              let pid = Int(line[..<open].trimmingCharacters(in: .whitespaces)), pid > 0 else { return nil }
        let fields = line[line.index(after: close)...].split(separator: " ")
        // Counted from 3, the state.
        guard fields.count >= 22, fields[0].count == 1, let parent = Int(fields[1]), let user = UInt64(fields[11]), let system = UInt64(fields[12]),
              let threads = Int(fields[17]), let resident = UInt64(fields[21]) else { return nil }
        return Process(pid: pid, parent: parent, name: String(line[line.index(after: open)..<close].prefix(64)), state: String(fields[0]), threads: threads,
                       cpuSeconds: Double(user &+ system) / 100, residentPages: resident)
    }

    /// Libraries that one `/proc/PID/maps` has mapped to be run; `(deleted)`, at the end, is of one that was replaced since.
    static func libraries(maps text: String) -> Set<String> {
        var found: Set<String> = []
        for line in text.split(separator: "\n") {
            // Address, permissions, offset, device, inode, path.
            let fields = line.split(separator: " ", maxSplits: 5, omittingEmptySubsequences: true)
            guard fields.count == 6, fields[1].contains("x") else { continue }
            // It stands in a column of its own.
            let path = fields[5].drop { $0 == " " }
            if path.hasPrefix("/"), path.contains(".so") { found.insert(String(path.prefix(mostPath))) }
        }
        return found
    }

    static let mostPath = 512

    /// The size of a page, of `/proc/self/auxv` (getauxval(3), AT_PAGESZ): pairs of words, here of 64 bits.
    static func pageSize(auxv: [UInt8]) -> UInt64? {
        for at in stride(from: 0, to: auxv.count - 15, by: 16) {
            func word(_ begin: Int) -> UInt64 { (0..<8).reduce(0) { $0 | UInt64(auxv[begin + $1]) << (8 * $1) } }
            if word(at) == 6 { return [4096, 16384, 65536].contains(word(at + 8)) ? word(at + 8) : nil }
        }
        return nil
    }
}
