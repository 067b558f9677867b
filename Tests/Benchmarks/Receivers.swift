import Foundation
import Glibc
import Platform
import Replication
import Transport

/// The other end of a primary's COLO stream.
protocol Receiver: AnyObject {
    /// What to give QEMU's `migrate`. The receiver is ready for it.
    var uri: String { get }
    func setInterval(_ milliseconds: Double)
    /// Ends it between two epochs; the primary is told afterwards.
    func end()
    /// Processes that take part, by role.
    var processes: [(role: String, pid: pid_t)] { get }
}

/// QEMU's own secondary.
final class QEMUSecondary: Receiver {
    private let qemu: QEMU
    let uri: String

    init(_ bench: Bench) throws {
        let path = "\(bench.work)/secondary.colo"
        unlink(path)
        uri = "unix:\(path)"
        qemu = try QEMU(bench, name: "secondary", incoming: true)
        try qemu.command("migrate-set-capabilities", ["capabilities": [["capability": "x-colo", "state": true]]])
        try qemu.command("migrate-incoming", ["uri": uri])
    }

    func setInterval(_ milliseconds: Double) {}
    func end() { qemu.end() }
    var processes: [(role: String, pid: pid_t)] { [("secondary", qemu.pid)] }
}

/// As little as QEMU needs to go on: acknowledges at once and reads the bytes into one buffer. What is left is QEMU's own share.
final class AcknowledgeOnly: Receiver, @unchecked Sendable {
    let uri: String
    private let listener: Int32
    private let connection = Guarded<Int32>(-1)

    init(_ bench: Bench) throws {
        let path = "\(bench.work)/lower.colo"
        uri = "unix:\(path)"
        listener = try UnixSocket.listen(path, mode: 0o600).release()
        startThread("lower bound") { [self] in run() }
    }

    private func run() {
        let fd = accept(listener, nil, nil)
        guard fd >= 0 else { return }
        connection.change { $0 = fd }
        let size = 4 << 20
        let buffer = UnsafeMutableRawPointer.allocate(byteCount: size, alignment: 4096)
        defer { buffer.deallocate() }
        var received = 0
        // The first copy and its device state: over when nothing has come for 300 ms.
        while received < 1 << 20 || isReadable(fd, 300) {
            let got = read(fd, buffer, size)
            guard got > 0 else { return }
            received += got
        }
        guard say(fd, [0]) else { return }
        while true {
            // REQUEST stands alone, after at least 5 ms of silence.
            let got = read(fd, buffer, size)
            guard got > 0 else { return }
            guard got >= 4, word(buffer + got - 4) == 1, got == 4 || !isReadable(fd, 2) else { continue }
            guard say(fd, [2]), read(fd, buffer, size) >= 4, word(buffer) == 3, say(fd, [5, 6]) else { return }
        }
    }

    private func isReadable(_ fd: Int32, _ milliseconds: Int32) -> Bool {
        var entry = pollfd(fd: fd, events: Int16(POLLIN), revents: 0)
        return poll(&entry, 1, milliseconds) > 0
    }

    private func word(_ base: UnsafeMutableRawPointer) -> UInt32 { UInt32(bigEndian: base.loadUnaligned(as: UInt32.self)) }

    private func say(_ fd: Int32, _ words: [UInt32]) -> Bool {
        let message = words.map(\.bigEndian)
        return message.withUnsafeBytes { send(fd, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) } == words.count * 4
    }

    func setInterval(_ milliseconds: Double) {}
    func end() {
        shutdown(connection.read { $0 }, Int32(SHUT_RDWR))
        close(listener)
    }
    var processes: [(role: String, pid: pid_t)] { [] }
}

/// Our two workers, joined by TCP over loopback, the shadow's RAM in a memory file.
final class Workers: Receiver {
    let uri: String
    private let source: Worker
    private let shadow: Worker

    init(_ bench: Bench, program: String? = nil, memoryMiB: Int = 64, intervalMs: Double = 20) throws {
        let path = "\(bench.work)/worker.colo"
        uri = "unix:\(path)"
        let session = UUID()
        let ram = try memoryFile("benchmark-ram", bytes: memoryMiB << 20)
        let (journal, state) = try ShadowWorker.makeFiles()
        shadow = try Worker(bench, WorkerCommand(.startShadow, shadow: ShadowWorkerOptions(
            session: session, domain: "ledger", sharedBlocks: [SharedBlock(name: "pc.ram", byteCount: UInt64(memoryMiB) << 20)], peerTimeoutMs: 5000)),
            descriptors: [journal, state, ram.raw], program: program)
        close(journal)
        close(state)
        try shadow.await(.ready)
        let port = UInt16.random(in: 20_000...30_000)
        let listener = try TCP.listen(Endpoint(address: "127.0.0.1", port: port)).release()
        source = try Worker(bench, WorkerCommand(.startSource, source: SourceWorkerOptions(
            session: session, domain: "ledger", host: "a", peer: "b", peerAddress: "127.0.0.1", peerPort: port, secret: nil,
            streamPath: path, streamOwner: 0, streamGroup: 0, intervalMs: intervalMs, intervalLimitMs: 1000, ceilingBytes: 256 << 20,
            keepaliveMs: 1000, peerTimeoutMs: 5000)), descriptors: [], program: program)
        try source.await(.ready)
        let shadow = shadow
        startThread("connect") {
            let deadline = MonotonicTime.now.adding(milliseconds: 30_000)
            defer { close(listener) }
            guard let accepted = (try? acceptConnection(listener, until: deadline)) ?? nil else { return }
            TCP.tune(accepted.raw, stallMilliseconds: 5000)
            guard (try? Handshake.accept(accepted.raw, secret: .none, deadline: deadline)) != nil,
                  (try? Handshake.conclude(accepted.raw, .welcome, deadline: deadline)) != nil else { return }
            shadow.order(WorkerCommand(.connection), descriptor: accepted.raw)
        }
    }

    func setInterval(_ milliseconds: Double) { source.order(WorkerCommand(.setInterval, intervalMs: milliseconds)) }

    func end() {
        source.end()
        shadow.end()
    }

    var processes: [(role: String, pid: pid_t)] { [("source worker", source.pid), ("shadow worker", shadow.pid)] }
    var statistics: SharedStatistics { source.statistics }
}

/// One worker process, as the service starts it.
final class Worker: @unchecked Sendable {
    private let process: Subprocess
    private let channel: WorkerChannel
    let statistics: SharedStatistics
    private let seen = Guarded<[WorkerEvent]>([])
    var pid: pid_t { process.pid }

    init(_ bench: Bench, _ start: WorkerCommand, descriptors: [Int32], program: String? = nil) throws {
        let pair = try UnixSocket.messagePair()
        let shared = try memoryFile("benchmark-statistics", bytes: SharedStatistics.bytes)
        statistics = try SharedStatistics(shared.raw)
        // Nobody resumes the guest behind our back here: epochs need no proof by QEMU's events.
        statistics[.eventsAway] = 1
        process = try Subprocess.spawn(program ?? bench.shadowVirt, arguments: ["worker"], descriptors: [pair.theirs.raw, shared.raw] + descriptors)
        channel = WorkerChannel(pair.takeOurs())
        try channel.send(start)
        startThread("events") { [channel, seen] in
            while let (event, fd) = (try? channel.receive(WorkerEvent.self)) ?? nil {
                if fd >= 0 { close(fd) }
                seen.change { $0.append(event) }
            }
            seen.change { $0.append(WorkerEvent(.failed, reason: "it ended")) }
        }
    }

    /// Waits until the worker has said so.
    func await(_ kind: WorkerEvent.Kind, seconds: Double = 20) throws {
        let failure = seen.wait(until: MonotonicTime.now.adding(milliseconds: seconds * 1000)) { events -> String? in
            if events.contains(where: { $0.kind == kind }) { return "" }
            return events.first { $0.kind == .failed }.map { $0.reason ?? "no reason" }
        }
        guard let failure else { throw BenchFailure("A worker did not say \(kind.rawValue) within \(Int(seconds)) s") }
        guard failure.isEmpty else { throw BenchFailure("A worker failed: \(failure)") }
    }

    func order(_ command: WorkerCommand, descriptor: Int32 = -1) { try? channel.send(command, descriptor: descriptor) }

    func end() {
        order(WorkerCommand(.stop))
        if process.wait(until: MonotonicTime.now.adding(milliseconds: 1000)) == nil {
            process.signal(SIGKILL)
            _ = process.wait(until: MonotonicTime.now.adding(milliseconds: 2000))
        }
    }
}
