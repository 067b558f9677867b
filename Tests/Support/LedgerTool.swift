// Reads what ledger guests print (Tests/Guests/ledger.S): did the guest go on without a break in its books, and how long
// did it stand still? Built by Tests/Guests/build.sh.
//
// All times are CLOCK_MONOTONIC, which network and mount namespaces share: two hosts on one machine have one clock.

import Foundation

let usage = """
    usage: ledger-tool follow [--for SECONDS] FILE OUT [FILE OUT]...
           ledger-tool check [--rollback TICKS | --swap] [--reboot] [--ignore-disk] LOG [LOG]...
           ledger-tool outage OUT [OUT]...
           ledger-tool disk [--tick TICK [--within TICKS]] [--together] IMAGE...
           ledger-tool mark IMAGE...

    follow   appends "<nanoseconds> <line>" to OUT for each line that arrives at the end of FILE, until killed;
             FILE need not exist yet. Looks every half millisecond.
    check    the logs of one guest in the order in which the hosts ran it. LOG is FILE, or FILE@FROM[-TO] in bytes, for a
             host that ran it more than once. At each hand-over the guest may repeat up to TICKS ticks (default: any
             number), with --swap none, and lose none. --reboot: it may boot anew in between. --ignore-disk: its disk
             is not replicated, so what it finds there does not count.
    outage   OUT files of follow in the order of hand-over: the time from one host's last line to the next host's first,
             and the gaps between lines within each. Two hosts printing at one time is reported as `overlap`.
    disk     the records in a guest's raw disk images: generation, last record and its tick, and whether all 1024 slots hold
             what they must by then. --tick: the last record is from this tick or one of the TICKS (default 25) before it:
             give the tick that the guest printed last, or first after a failover. --together: the images are of one guest,
             in the order of its disks, and from one moment: no disk is more than the record being written ahead.
             The guest should not run meanwhile.
    mark     the guest writes to virtio disks made of these images (raw, at least 544 KiB; the rest is kept).

    Prints JSON. Exit status: 0 fine, 1 failed, 2 a check found something, 64 usage.
    """

@main
enum LedgerTool {
    static func main() {
        var arguments = Array(CommandLine.arguments.dropFirst())
        guard !arguments.isEmpty else { fail(usage, status: 64) }
        do {
            switch arguments.removeFirst() {
            case "follow": try follow(&arguments)
            case "check": try check(&arguments)
            case "outage": try outage(arguments)
            case "disk": try disk(&arguments)
            case "mark": try mark(arguments)
            case "help", "--help", "-h": print(usage)
            default: fail(usage, status: 64)
            }
        } catch let problem as UsageError {
            fail("ledger-tool: \(problem.message)\n\(usage)", status: 64)
        } catch {
            fail("ledger-tool: \(error)", status: 1)
        }
    }
}

struct UsageError: Error { var message: String }

struct ReadError: Error, CustomStringConvertible {
    var path: String
    var code: Int32
    var description: String { "Cannot read \(path): \(String(cString: strerror(code)))" }
}

func fail(_ message: String, status: Int32) -> Never {
    FileHandle.standardError.write(Data((message + "\n").utf8))
    exit(status)
}

func report(_ value: some Encodable, ok: Bool) throws {
    let encoder = JSONEncoder()
    encoder.outputFormatting = [.prettyPrinted, .sortedKeys, .withoutEscapingSlashes]
    encoder.keyEncodingStrategy = .convertToSnakeCase
    print(String(decoding: try encoder.encode(value), as: UTF8.self))
    exit(ok ? 0 : 2)
}

extension [String] {
    mutating func takeFlag(_ name: String) -> Bool {
        guard let at = firstIndex(of: name) else { return false }
        remove(at: at)
        return true
    }

    mutating func takeNumber(_ name: String) throws -> Int? {
        guard let at = firstIndex(of: name) else { return nil }
        guard at + 1 < count, let number = Int(self[at + 1]), number >= 0 else {
            throw UsageError(message: "\(name) needs a number")
        }
        removeSubrange(at...at + 1)
        return number
    }
}

// MARK: - follow

func monotonicNanoseconds() -> UInt64 {
    var now = timespec()
    clock_gettime(CLOCK_MONOTONIC, &now)
    return UInt64(now.tv_sec) * 1_000_000_000 + UInt64(now.tv_nsec)
}

func follow(_ arguments: inout [String]) throws {
    let seconds = try arguments.takeNumber("--for")
    guard !arguments.isEmpty, arguments.count % 2 == 0 else { throw UsageError(message: "follow needs pairs of FILE OUT") }
    var followers = try stride(from: 0, to: arguments.count, by: 2).map {
        try Follower(path: arguments[$0], output: arguments[$0 + 1])
    }
    let end = seconds.map { monotonicNanoseconds() + UInt64($0) * 1_000_000_000 } ?? .max
    var turn = 0
    while monotonicNanoseconds() < end {
        for index in followers.indices {
            // A stat every 50 ms is enough to notice a file that appears or is replaced.
            if turn % 100 == 0 { followers[index].reopen() }
            try followers[index].copyNewLines()
        }
        turn += 1
        usleep(500)
    }
}

struct Follower {
    let path: String
    let output: Int32
    var input: Int32 = -1
    var inode: UInt = 0
    var partial: [UInt8] = []

    init(path: String, output: String) throws {
        self.path = path
        self.output = open(output, O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0o644)
        guard self.output >= 0 else { throw ReadError(path: output, code: errno) }
        reopen()
        if input >= 0 { lseek(input, 0, SEEK_END) }  // what stands there already arrived at a time unknown
    }

    mutating func reopen() {
        var status = stat()
        guard stat(path, &status) == 0 else { return }
        let position = input >= 0 ? lseek(input, 0, SEEK_CUR) : 0
        if status.st_ino == inode, status.st_size >= position { return }
        if input >= 0 { close(input) }
        input = open(path, O_RDONLY | O_CLOEXEC)
        inode = UInt(status.st_ino)
        partial = []
    }

    mutating func copyNewLines() throws {
        guard input >= 0 else { return }
        var buffer = [UInt8](repeating: 0, count: 16384)
        let count = read(input, &buffer, buffer.count)
        guard count > 0 else { return }
        let prefix = Array("\(monotonicNanoseconds()) ".utf8)
        var lines: [UInt8] = []
        for byte in buffer[..<count] {
            partial.append(byte)
            guard byte == UInt8(ascii: "\n") else { continue }
            lines += prefix + partial
            partial = []
        }
        guard !lines.isEmpty, write(output, lines, lines.count) != lines.count else { return }
        throw ReadError(path: "the output for \(path)", code: errno)
    }
}

// MARK: - check

/// A line of the guest. `nil` from `init` is a line cut off at its start, or rubbish.
enum Line {
    case boot
    case ticks([Int])
    case corrupt(String)
    case diskError(String)
    case records([Int])
    case other

    init?(_ text: Substring) {
        let words = text.split(separator: " ", omittingEmptySubsequences: false)
        switch words[0] {
        case "BOOT": self = .boot
        case "T", "R", "D":
            let numbers = words.dropFirst().compactMap { Int($0) }
            guard !numbers.isEmpty, numbers.count == words.count - 1 else { return nil }
            self = words[0] == "T" ? .ticks(numbers) : words[0] == "D" ? .records(numbers) : .other
        case "CORRUPT": self = .corrupt(String(text))
        case "DISKERROR": self = .diskError(String(text))
        case "CPUS", "DISKS", "BYE", "REBOOT": self = .other
        default: return nil
        }
    }
}

/// One stay of the guest on a host.
struct Log {
    var name: String
    var lines: [Substring]
    /// What stands behind the last newline: a line that the guest was in the middle of.
    var tail: Substring

    init(argument: String) throws {
        name = argument
        let path: String
        var range = 0..<Int.max
        if let at = argument.lastIndex(of: "@"), let given = Self.range(argument[argument.index(after: at)...]) {
            (path, range) = (String(argument[..<at]), given)
        } else {
            path = argument
        }
        guard let data = FileManager.default.contents(atPath: path) else { throw ReadError(path: path, code: errno) }
        let text = String(decoding: data[range.clamped(to: 0..<data.count)], as: UTF8.self)
        lines = text.split(separator: "\n", omittingEmptySubsequences: false)
        tail = lines.removeLast()
    }

    private static func range(_ text: Substring) -> Range<Int>? {
        let ends = text.split(separator: "-", maxSplits: 1)
        guard let from = ends.first.flatMap({ Int($0) }) else { return nil }
        guard ends.count == 2 else { return from..<Int.max }
        return Int(ends[1]).flatMap { from <= $0 ? from..<$0 : nil }
    }
}

struct Problem: Encodable {
    var log: String
    var line: Int
    var problem: String
}

struct CheckReport: Encodable {
    struct LogSummary: Encodable {
        var log: String
        var lines: Int
        var boots = 0
        var firstTick: Int?
        var lastTick: Int?
        var lastRecords: [Int]?
        var corruptLines = 0
        var diskErrors = 0
    }

    struct HandOver: Encodable {
        var from: String
        var to: String
        var lastTick: Int
        var firstTick: Int
        var repeatedTicks: Int
        var lostTicks: Int
        /// The guest changed hosts in the middle of a line.
        var withinLine: Bool
    }

    var schema = 1
    var ok = true
    var vcpus = 0
    var ticksPerLine = 1
    var logs: [LogSummary] = []
    var handOvers: [HandOver] = []
    var problemCount = 0
    var problems: [Problem] = []
}

struct Checker {
    var rollback: Int
    var mayReboot: Bool
    var ignoresDisk: Bool
    /// A vCPU whose tick stays the same over so many lines stands still; two seconds by default.
    let stallLines = 500

    private var result = CheckReport()
    private var last: [Int]?
    private var ticksOfOtherCPUs: [Int: [Int]] = [:]
    private var unchanged: [Int] = []
    private var previousTail: Substring = ""
    private var previousName: String?
    private var ticksPerLine: Int?

    init(rollback: Int, mayReboot: Bool, ignoresDisk: Bool) {
        self.rollback = rollback
        self.mayReboot = mayReboot
        self.ignoresDisk = ignoresDisk
    }

    mutating func run(_ logs: [Log]) -> CheckReport {
        for log in logs { read(log) }
        if last == nil { add("no tick at all", logs[0].name, 0) }
        result.ticksPerLine = ticksPerLine ?? 1
        result.ok = result.problemCount == 0
        return result
    }

    private mutating func add(_ problem: String, _ log: String, _ line: Int) {
        result.problemCount += 1
        if result.problems.count < 20 { result.problems.append(Problem(log: log, line: line, problem: problem)) }
    }

    private mutating func read(_ log: Log) {
        var summary = CheckReport.LogSummary(log: log.name, lines: log.lines.count)
        var fragment: Substring?
        for (index, text) in log.lines.enumerated() {
            guard let line = Line(text) else {
                if index == 0, previousName != nil {
                    fragment = text
                } else if index == 0, text.utf8.allSatisfy({ (0x30...0x39).contains($0) }) {
                    // The rest of a number: the guest came here in the middle of a line, from a host whose log is not looked at.
                } else {
                    add("not a line of the guest: \(text.prefix(60))", log.name, index + 1)
                }
                continue
            }
            switch line {
            case .boot:
                summary.boots += 1
                summary.lastRecords = nil
                if !mayReboot, last != nil || index > 0 { add("the guest booted anew", log.name, index + 1) }
                (last, previousName, unchanged, ticksOfOtherCPUs) = (nil, nil, [], [:])
            case .corrupt(let text):
                if ignoresDisk, text.hasPrefix("CORRUPT disk ") || text.hasPrefix("CORRUPT disktick ") { continue }
                summary.corruptLines += 1
                add(text, log.name, index + 1)
            case .diskError(let text):
                summary.diskErrors += 1
                add(text, log.name, index + 1)
            case .records(let records):
                let before = summary.lastRecords ?? []
                if zip(records, before).contains(where: { $0 < $1 }) { add("\(text) after \(before)", log.name, index + 1) }
                summary.lastRecords = records
            case .ticks(let ticks):
                if summary.firstTick == nil {
                    summary.firstTick = ticks[0]
                    if previousName != nil { takeOver(ticks, fragment, log.name, index + 1) }
                } else {
                    follow(ticks, log.name, index + 1)
                }
                summary.lastTick = ticks[0]
                note(ticks, log.name, index + 1)
            case .other: break
            }
        }
        if summary.firstTick == nil, !result.logs.isEmpty { add("the guest did not run here", log.name, 0) }
        result.logs.append(summary)
        (previousTail, previousName) = (log.tail, log.name)
    }

    /// A line after another on the same host.
    private mutating func follow(_ ticks: [Int], _ log: String, _ line: Int) {
        guard let last else { return }
        let step = ticks[0] - last[0]
        if ticksPerLine == nil, step > 0 { ticksPerLine = step }
        if step != ticksPerLine { add("tick \(ticks[0]) after \(last[0])", log, line) }
        compareOthers(ticks, with: last, log, line)
    }

    /// The first line on the next host.
    private mutating func takeOver(_ ticks: [Int], _ fragment: Substring?, _ log: String, _ line: Int) {
        guard let last, let previousName else { return }
        let step = ticksPerLine ?? 1
        let ahead = ticks[0] - last[0] - step
        // A line begun here and ended there counts as printed, though neither log has the whole of it.
        let lost = fragment != nil && ahead == step ? 0 : max(0, ahead)
        let repeated = max(0, -ahead)
        result.handOvers.append(.init(
            from: previousName, to: log, lastTick: last[0], firstTick: ticks[0], repeatedTicks: repeated, lostTicks: lost,
            withinLine: fragment != nil))
        if lost > 0 { add("\(lost) ticks lost: \(ticks[0]) after \(last[0])", log, line) }
        if repeated > rollback {
            add("\(repeated) ticks repeated, \(rollback) allowed: \(ticks[0]) after \(last[0])", log, line)
        }
        if rollback == 0, let joined = fragment.map({ previousTail + $0 }) ?? (previousTail.isEmpty ? nil : previousTail),
            Line(joined) == nil
        {
            add("a line was not carried over whole: \(joined.prefix(60))", log, 1)
        }
        if let before = ticksOfOtherCPUs[ticks[0] - step] { compareOthers(ticks, with: before, log, line) }
    }

    /// The other vCPUs' ticks have timers of their own: they never go back, and go on some time.
    private mutating func compareOthers(_ ticks: [Int], with last: [Int], _ log: String, _ line: Int) {
        guard ticks.count == last.count else { return add("\(ticks.count) vCPUs after \(last.count)", log, line) }
        for cpu in ticks.indices.dropFirst() where ticks[cpu] < last[cpu] {
            add("vCPU \(cpu) went back to tick \(ticks[cpu]) from \(last[cpu])", log, line)
        }
    }

    private mutating func note(_ ticks: [Int], _ log: String, _ line: Int) {
        result.vcpus = max(result.vcpus, ticks.count)
        if unchanged.count != ticks.count { unchanged = ticks.map { _ in 0 } }
        for cpu in ticks.indices.dropFirst() {
            unchanged[cpu] = last?.count == ticks.count && last?[cpu] == ticks[cpu] ? unchanged[cpu] + 1 : 0
            if unchanged[cpu] == stallLines { add("vCPU \(cpu) stands still at tick \(ticks[cpu])", log, line) }
        }
        if ticks.count > 1 { ticksOfOtherCPUs[ticks[0]] = ticks }
        last = ticks
    }
}

func check(_ arguments: inout [String]) throws {
    let swap = arguments.takeFlag("--swap")
    let mayReboot = arguments.takeFlag("--reboot")
    let ignoresDisk = arguments.takeFlag("--ignore-disk")
    let rollback = try arguments.takeNumber("--rollback")
    guard !arguments.isEmpty else { throw UsageError(message: "check needs a log") }
    guard !swap || rollback == nil else { throw UsageError(message: "--swap allows no --rollback") }
    if let option = arguments.first(where: { $0.hasPrefix("-") }) { throw UsageError(message: "No such option: \(option)") }
    var checker = Checker(rollback: swap ? 0 : rollback ?? .max, mayReboot: mayReboot, ignoresDisk: ignoresDisk)
    let result = checker.run(try arguments.map(Log.init(argument:)))
    try report(result, ok: result.ok)
}

// MARK: - outage

struct OutageReport: Encodable {
    struct Gaps: Encodable {
        var file: String
        var lines: Int
        var medianGapMs: Double
        var p99GapMs: Double
        var largestGapMs: Double
    }

    struct HandOver: Encodable {
        var from: String
        var to: String
        var outageMs: Double
        var overlap: Bool
    }

    var schema = 1
    var ok = true
    var hosts: [Gaps] = []
    var handOvers: [HandOver] = []
}

func outage(_ paths: [String]) throws {
    guard !paths.isEmpty else { throw UsageError(message: "outage needs a file") }
    let times = try paths.map(arrivalMilliseconds)
    var result = OutageReport()
    for (path, times) in zip(paths, times) {
        let gaps = zip(times.dropFirst(), times).map { $0 - $1 }.sorted()
        let at = { (share: Double) in gaps.isEmpty ? 0 : gaps[min(gaps.count - 1, Int(Double(gaps.count) * share))] }
        result.hosts.append(.init(
            file: path, lines: times.count, medianGapMs: rounded(at(0.5)), p99GapMs: rounded(at(0.99)),
            largestGapMs: rounded(gaps.last ?? 0)))
    }
    for index in paths.indices.dropFirst() {
        guard let last = times[index - 1].last, let first = times[index].first else {
            throw UsageError(message: "\(times[index].isEmpty ? paths[index] : paths[index - 1]) has no line")
        }
        // Times are those of reading, half a millisecond apart at best.
        let overlap = first - last < -2
        result.handOvers.append(.init(
            from: paths[index - 1], to: paths[index], outageMs: rounded(first - last), overlap: overlap))
        if overlap { result.ok = false }
    }
    try report(result, ok: result.ok)
}

func arrivalMilliseconds(_ path: String) throws -> [Double] {
    guard let data = FileManager.default.contents(atPath: path) else { throw ReadError(path: path, code: errno) }
    return String(decoding: data, as: UTF8.self).split(separator: "\n").compactMap { line in
        line.split(separator: " ", maxSplits: 1).first.flatMap { UInt64($0) }.map { Double($0) / 1e6 }
    }
}

func rounded(_ milliseconds: Double) -> Double { (milliseconds * 100).rounded() / 100 }

// MARK: - disk

/// Where things are on the disk (ledger.S).
enum Layout {
    static let sector = 512
    static let markSector = 62
    static let firstSlot = 64
    static let slots = 1024
    static let bytes = (firstSlot + slots) * sector
    static let mark: UInt32 = 0x5747_444c
    static let superMagic: UInt32 = 0x5347_444c
    static let recordMagic: UInt32 = 0x5247_444c
}

struct DiskReport: Encodable {
    struct Image: Encodable {
        var image: String
        var ok: Bool
        var generation: UInt32
        /// 0: none of this generation.
        var records: Int
        var lastRecord: UInt32?
        var lastTick: UInt32?
        /// Of the records that must be there, up to the last.
        var missingRecords: Int
        var problemCount: Int
        /// The first ones.
        var problems: [String]
    }

    var schema = 1
    var ok = true
    var images: [Image] = []
}

func disk(_ arguments: inout [String]) throws {
    let together = arguments.takeFlag("--together")
    let tick = try arguments.takeNumber("--tick")
    let within = try arguments.takeNumber("--within")
    guard within == nil || tick != nil else { throw UsageError(message: "--within needs --tick") }
    if let option = arguments.first(where: { $0.hasPrefix("-") }) { throw UsageError(message: "No such option: \(option)") }
    guard !arguments.isEmpty else { throw UsageError(message: "disk needs an image") }
    var images = try arguments.map { path in
        var image = DiskImage(try readSlots(path))
        if let tick { image.compare(withTick: tick, within: within ?? 25) }
        return image.report(path)
    }
    if together { compare(&images) }
    try report(DiskReport(ok: images.allSatisfy(\.ok), images: images), ok: images.allSatisfy(\.ok))
}

func readSlots(_ path: String) throws -> Data {
    guard let file = FileHandle(forReadingAtPath: path) else { throw ReadError(path: path, code: errno) }
    let data = try file.read(upToCount: Layout.bytes) ?? Data()
    guard data.count == Layout.bytes else { throw UsageError(message: "\(path) is too short for the guest's disk: \(data.count) bytes") }
    return data
}

/// The guest's disk, slot by slot.
struct DiskImage {
    private struct Record {
        var generation: UInt32
        var number: UInt32
        var tick: UInt32
        var isWhole: Bool
    }

    private let generation: UInt32
    private let slots: [Record?]
    private let last: Record?
    private var missing = 0
    private var problems: [String] = []

    init(_ data: Data) {
        let words = data.withUnsafeBytes { bytes in
            (0..<Layout.bytes / 4).map { UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: $0 * 4, as: UInt32.self)) }
        }
        let superblock = words[((Layout.firstSlot - 1) * Layout.sector / 4)...].prefix(2)
        let generation = superblock.first == Layout.superMagic ? superblock.last! : 0
        slots = (0..<Layout.slots).map { slot in
            let sector = words[((Layout.firstSlot + slot) * Layout.sector / 4)...].prefix(Layout.sector / 4)
            let head = Array(sector.prefix(4))
            guard head[0] == Layout.recordMagic else { return nil }
            let isWhole = Int(head[2]) % Layout.slots == slot && sector.dropFirst(4).allSatisfy { $0 == head[2] }
            return Record(generation: head[1], number: head[2], tick: head[3], isWhole: isWhole)
        }
        self.generation = generation
        last = slots.compactMap { $0 }.filter { $0.generation == generation && $0.isWhole }.max { $0.number < $1.number }
        check()
    }

    /// Each slot must hold the newest record of its own up to the last one; slots without any may hold a whole one of an earlier boot.
    private mutating func check() {
        if generation == 0 { problems.append("No superblock: the guest never wrote to this disk") }
        let count = last.map { Int($0.number) + 1 } ?? 0
        for slot in slots.indices {
            let expected = slot < count ? (count - 1 - slot) / Layout.slots * Layout.slots + slot : nil
            let found = slots[slot]
            if let found, !found.isWhole { problems.append("Slot \(slot) is not whole: record \(found.number) of generation \(found.generation)") }
            if let found, found.generation > generation { problems.append("Slot \(slot) holds a record of generation \(found.generation)") }
            guard let expected, found?.generation != generation || found?.number != UInt32(expected) else { continue }
            missing += 1
            let what = found.map { "record \($0.number) of generation \($0.generation)" } ?? "no record"
            problems.append("Slot \(slot) holds \(what), not \(expected)")
        }
        let newest = (max(0, count - Layout.slots)..<count).compactMap { slots[$0 % Layout.slots]?.tick }
        for (earlier, later) in zip(newest, newest.dropFirst()) where later < earlier {
            problems.append("A record of tick \(later) follows one of tick \(earlier)")
        }
    }

    mutating func compare(withTick tick: Int, within: Int) {
        guard let last else { return problems.append("No record of this generation") }
        let written = Int(last.tick)
        if written > tick { problems.append("Ahead: its last record is of tick \(written), the guest was at \(tick)") }
        if written < tick - within { problems.append("Behind: its last record is of tick \(written), the guest was at \(tick)") }
    }

    func report(_ path: String) -> DiskReport.Image {
        .init(
            image: path, ok: problems.isEmpty, generation: generation, records: last.map { Int($0.number) + 1 } ?? 0,
            lastRecord: last?.number, lastTick: last?.tick, missingRecords: missing, problemCount: problems.count,
            problems: Array(problems.prefix(20)))
    }
}

/// Disks take turns: no disk has more records than the one before it, and the last at most one less than the first.
func compare(_ images: inout [DiskReport.Image]) {
    for index in images.indices.dropFirst() {
        let (first, before, this) = (images[0].records, images[index - 1].records, images[index].records)
        guard this > before || first - this > 1 else { continue }
        images[index].problems.append("Not of one moment: \(this) records, \(before) on the disk before it, \(first) on the first")
        images[index].problemCount += 1
        images[index].ok = false
    }
}

// MARK: - mark

func mark(_ paths: [String]) throws {
    guard !paths.isEmpty else { throw UsageError(message: "mark needs an image") }
    for path in paths {
        _ = try readSlots(path)
        guard let file = FileHandle(forWritingAtPath: path) else { throw ReadError(path: path, code: errno) }
        try file.seek(toOffset: UInt64(Layout.markSector * Layout.sector))
        try file.write(contentsOf: withUnsafeBytes(of: Layout.mark.littleEndian) { Data($0) })
        try file.close()
    }
}
