import Foundation
import Glibc
import Platform
import ReplicaStore

/// A stand-in for the worker, to be killed at any of its system calls.
///
///     replica-store-exerciser make FOLDER...                    empty disks
///     replica-store-exerciser run SEED EPOCHS FOLDER            goes through the plan
///     replica-store-exerciser recover FOLDER                    as after a power loss, and nothing else
///     replica-store-exerciser check kill|power SEED EPOCHS FOLDER...
///         recovers as after a kill (the memory side survived) or a power loss, and compares the disks with the plan
@main
enum Exerciser {
    struct Wrong: Error, CustomStringConvertible {
        let description: String
        init(_ description: String) { self.description = description }
    }

    static func main() {
        do {
            try run(Array(CommandLine.arguments.dropFirst()))
        } catch {
            FileHandle.standardError.write(Data("\(error)\n".utf8))
            exit(1)
        }
    }

    private static func run(_ arguments: [String]) throws {
        switch arguments.first {
        case "make": for folder in arguments.dropFirst() { try make(folder) }
        case "run" where arguments.count == 4:
            try enter(arguments[3])
            try Run(plan: plan(arguments[1], arguments[2])).run()
        case "recover" where arguments.count == 2:
            try enter(arguments[1])
            try ReplicaSet.recover(folder: "store")
        case "check" where arguments.count > 4:
            let plan = try plan(arguments[2], arguments[3])
            for folder in arguments[4...] {
                try enter(folder)
                do { try Check(plan: plan, afterPowerLoss: arguments[1] == "power").run() } catch { throw Wrong("\(folder): \(error)") }
            }
        default: throw Wrong("make FOLDER... | run SEED EPOCHS FOLDER | recover FOLDER | check kill|power SEED EPOCHS FOLDER...")
        }
    }

    private static func plan(_ seed: String, _ epochs: String) throws -> Plan {
        guard let seed = UInt64(seed), let epochs = Int(epochs), epochs > 0 else { throw Wrong("\(seed) \(epochs) are no numbers") }
        return Plan(seed: seed, epochs: epochs)
    }

    /// Folders are given absolute.
    private static func enter(_ folder: String) throws {
        guard chdir(folder) == 0 else { throw SystemError("chdir", folder) }
    }

    private static func make(_ folder: String) throws {
        guard mkdir(folder, 0o700) == 0 else { throw SystemError("mkdir", folder) }
        for (disk, bytes) in zip(Plan.disks, Plan.blank) { try Data(bytes).write(to: URL(fileURLWithPath: "\(folder)/\(disk.path)")) }
        try Data(count: 16).write(to: URL(fileURLWithPath: "\(folder)/memory"))
    }
}

/// The memory side: the last complete epoch, and whether a sync is under way. It outlives the process, as memory files do.
struct MemorySide {
    var committed: UInt64 = 0
    var isSyncing = false

    static func load() throws -> MemorySide {
        let bytes = try Data(contentsOf: URL(fileURLWithPath: "memory"))
        let words = bytes.withUnsafeBytes { [$0.loadUnaligned(as: UInt64.self), $0.loadUnaligned(fromByteOffset: 8, as: UInt64.self)] }
        return MemorySide(committed: words[0], isSyncing: words[1] != 0)
    }

    func save(_ fd: Int32) throws {
        let words: [UInt64] = [committed, isSyncing ? 1 : 0]
        guard pwrite(fd, words, 16, 0) == 16 else { throw SystemError("pwrite", "memory") }
    }
}

struct Run {
    let plan: Plan

    func run() throws {
        let memoryFile = try Descriptor(checking: open("memory", O_RDWR | O_CLOEXEC), "open", "memory")
        var memory = MemorySide()
        let set = try ReplicaSet(folder: "store", session: Plan.session, disks: Plan.disks, journalLimitBytes: Plan.journalLimit,
                                 committed: nil)
        for step in plan.steps {
            switch step {
            case .sync(let epoch, let writes):
                memory.isSyncing = true
                try memory.save(memoryFile.raw)
                try set.beginSync()
                for write in writes { try write.bytes.withUnsafeBytes { try set.writeNow(write.extent, $0.baseAddress) } }
                try set.endSync(epoch: epoch)
                memory = MemorySide(committed: epoch)
                try memory.save(memoryFile.raw)
            case .epoch(let epoch, let writes, let abandoned):
                if let abandoned {
                    try staging(abandoned, set) { try set.prepare(epoch: epoch) }
                    set.discardStaged()
                }
                try staging(writes, set) {
                    try set.prepare(epoch: epoch)
                    memory.committed = epoch
                    try memory.save(memoryFile.raw)
                    try set.apply(epoch: epoch)
                }
            }
        }
        try set.close(clean: true)
    }
}

/// Stages the writes; their bytes stay where they are until `body` returns.
func staging(_ writes: [PlannedWrite], _ set: ReplicaSet, _ body: () throws -> Void) throws {
    var buffers: [UnsafeMutableRawPointer] = []
    defer { buffers.forEach { $0.deallocate() } }
    for write in writes {
        let buffer = UnsafeMutableRawPointer.allocate(byteCount: max(1, write.bytes.count), alignment: 16)
        write.bytes.withUnsafeBytes { if let base = $0.baseAddress { memcpy(buffer, base, $0.count) } }
        buffers.append(buffer)
        set.stage(write.extent, write.extent.kind == .data ? UnsafeRawPointer(buffer) : nil)
    }
    try body()
}

struct Check {
    let plan: Plan
    let afterPowerLoss: Bool

    func run() throws {
        let memory = try MemorySide.load()
        let set = try open(committed: afterPowerLoss ? nil : memory.committed)
        let state = set.state
        switch state {
        case .empty: guard memory.committed == 0 else { throw Exerciser.Wrong("empty, and epoch \(memory.committed) was committed") }
        case .syncing: guard memory.isSyncing else { throw Exerciser.Wrong("syncing, after the end of the sync") }
        case .consistent(let epoch): try compare(try contents(set), epoch, memory)
        }
        try goOn(set, state)
    }

    private func open(committed: UInt64?) throws -> ReplicaSet {
        try ReplicaSet(folder: "store", session: Plan.session, disks: Plan.disks, journalLimitBytes: Plan.journalLimit, committed: committed)
    }

    private func contents(_ set: ReplicaSet) throws -> Plan.Contents {
        try Plan.disks.map { disk in
            var bytes = [UInt8](repeating: 0, count: Int(disk.byteCount))
            try bytes.withUnsafeMutableBytes { buffer in
                if let base = buffer.baseAddress { try set.image(disk: disk.index)?.read(base, buffer.count, at: 0) }
            }
            return bytes
        }
    }

    private func compare(_ found: Plan.Contents, _ epoch: UInt64, _ memory: MemorySide) throws {
        let next = memory.committed + 1
        // The end of a sync, and a journalled epoch after a power loss, may be ahead of the memory side by one, never by more.
        let mayBeAhead = memory.isSyncing || afterPowerLoss
        guard epoch <= memory.committed || (epoch == next && mayBeAhead) else {
            throw Exerciser.Wrong("epoch \(epoch), and the memory side has \(memory.committed)")
        }
        if found == plan.after[epoch] {
            // An epoch without writes leaves no record, so the number may be an earlier one, but not the content.
            guard epoch == next || found == plan.after[memory.committed] else {
                throw Exerciser.Wrong("epoch \(epoch), and epoch \(memory.committed) was committed and differs")
            }
            return
        }
        if afterPowerLoss, epoch == next, found == plan.afterAbandoned[epoch] { return }
        throw Exerciser.Wrong("the disks are not those of epoch \(epoch) (committed \(memory.committed))")
    }

    /// What was recovered must be usable: another epoch, a clean close, and hashes that are true.
    private func goOn(_ set: ReplicaSet, _ state: ReplicaSet.State) throws {
        var next: UInt64 = 1000
        if case .consistent = state {} else {
            try set.beginSync()
            try set.endSync(epoch: next)
            next += 1
        }
        var expected = try contents(set)
        let extent = DiskExtent(disk: 3, kind: .data, offset: 60000, length: 70000)
        let write = PlannedWrite(extent: extent, bytes: (0..<70000).map { UInt8(truncatingIfNeeded: $0 &* 31) })
        try staging([write], set) {
            try set.prepare(epoch: next)
            try set.apply(epoch: next)
        }
        Plan.change(&expected, [write])
        let rebuilt = try set.chunkTable(disk: 0)?.rebuild(progress: { _ in true }, bytesPerSecond: nil)
        guard rebuilt == true else { throw Exerciser.Wrong("the table was not rebuilt") }
        try set.close(clean: true)
        let again = try open(committed: nil)
        guard again.state == .consistent(epoch: next) else { throw Exerciser.Wrong("\(again.state) after epoch \(next)") }
        guard try contents(again) == expected else { throw Exerciser.Wrong("the disks are not those of the epoch after the recovery") }
        guard again.chunkTable(disk: 0)?.staleChunks == 0 else { throw Exerciser.Wrong("the table was not kept") }
        for disk in Plan.disks { try compareHashes(again, disk) }
        try again.close(clean: false)
    }

    private func compareHashes(_ set: ReplicaSet, _ disk: ReplicaSet.Disk) throws {
        guard let table = set.chunkTable(disk: disk.index) else { throw Exerciser.Wrong("no table") }
        let (before, stale) = table.withHashes { (Array($0), $1) }
        for chunk in 0..<table.chunkCount where stale[chunk / 64] >> UInt64(chunk % 64) & 1 == 0 {
            table.forget(chunk)
        }
        _ = try table.rebuild(progress: { _ in true }, bytesPerSecond: nil)
        let after = table.withHashes { hashes, _ in Array(hashes) }
        for chunk in 0..<table.chunkCount where stale[chunk / 64] >> UInt64(chunk % 64) & 1 == 0 {
            let range = (chunk * 16)..<(chunk * 16 + 16)
            guard before[range] == after[range] else { throw Exerciser.Wrong("the hash of chunk \(chunk) of disk \(disk.index) is not true") }
        }
    }
}
