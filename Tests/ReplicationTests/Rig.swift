import CLinux
import Foundation
import MigrationStream
import Platform
import ReplicaStore
import XCTest
@testable import Replication
@testable import Transport

/// Runs `body` on a thread and hands out what it returned.
final class Running<Value>: @unchecked Sendable {
    private let done = DispatchSemaphore(value: 0)
    private var value: Value?
    init(_ body: @escaping @Sendable () -> Value) {
        Thread.detachNewThread { [self] in
            value = body()
            done.signal()
        }
    }
    /// Nil: it has not ended in time.
    func result(seconds: Double = 10) -> Value? {
        guard done.wait(timeout: .now() + seconds) == .success else { return nil }
        done.signal()
        return value
    }
}

/// The service's end of a worker's message socket.
final class Parent: @unchecked Sendable {
    let events = Guarded<[WorkerEvent]>([])
    private var channel: WorkerChannel?
    let workerSide: Int32

    init() throws {
        let pair = try UnixSocket.messagePair()
        workerSide = try pair.theirs.duplicate().release()
        let channel = WorkerChannel(try pair.ours.duplicate())
        self.channel = channel
        let events = events
        Thread.detachNewThread {
            while let (event, fd) = try? channel.receive(WorkerEvent.self) {
                if fd >= 0 { close(fd) }
                events.change { $0.append(event) }
            }
        }
    }

    func send(_ verb: WorkerCommand.Verb, intervalMs: Double? = nil, path: String? = nil, peer: Int? = nil, fd: Int32 = -1) {
        try? channel?.send(WorkerCommand(verb, intervalMs: intervalMs, path: path, peer: peer), descriptor: fd)
    }

    func order(_ command: WorkerCommand) { try? channel?.send(command) }

    /// As when the service dies.
    func close_() { if let channel { shutdown(channel.raw, Int32(SHUT_RDWR)) } }

    func count(_ kind: WorkerEvent.Kind) -> Int { events.read { $0.filter { $0.kind == kind }.count } }

    /// The `index`th event of its kind; nil when it does not come.
    func event(_ kind: WorkerEvent.Kind, _ index: Int = 0, ms: Double = 8000) -> WorkerEvent? {
        events.wait(until: .now.adding(milliseconds: ms)) { events in
            let some = events.filter { $0.kind == kind }
            return some.count > index ? some[index] : nil
        }
    }
}

/// The host of the shadow: its memory files, a listener, and one worker at a time.
final class ShadowHost: @unchecked Sendable {
    var session: UUID { current.read { $0.session } }
    static let secret = SharedSecret(Array("rig".utf8))
    let ram: Int32
    private(set) var journal: Int32
    private(set) var state: Int32
    let statistics: SharedStatistics
    private let statisticsFile: Int32
    let port: UInt16
    private static let block = SharedBlock(name: "pc.ram", byteCount: UInt64(QEMUStandIn.ramBytes))
    let verdict = Guarded<Handshake.Verdict>(.welcome)
    private let listener: Int32
    private let connections = Guarded<[Int32]>([])
    private struct Current {
        var parent: Parent?
        var session = UUID()
    }
    private let current = Guarded(Current())
    private var run: Running<Int32>?
    private var options: ShadowWorkerOptions
    private let view: MappedMemory

    init(peerTimeoutMs: Double, disks: [ReplicaSet.Disk] = [], diskFolder: String = "") throws {
        ram = try memoryFile("rig-ram", bytes: QEMUStandIn.ramBytes).release()
        view = try MappedMemory.shared(ram, length: QEMUStandIn.ramBytes, what: "the rig's RAM")
        // What a waiting QEMU's firmware left behind: a session has to start from zeros.
        memset(view.base, 0x77, 8192)
        (journal, state) = try ShadowWorker.makeFiles()
        statisticsFile = try memoryFile("rig-statistics", bytes: SharedStatistics.bytes).release()
        statistics = try SharedStatistics(statisticsFile)
        listener = try TCP.listen(Endpoint(address: "127.0.0.1", port: 0)).release()
        port = boundPort(listener)
        options = ShadowWorkerOptions(session: current.read { $0.session }, domain: "rig", sharedBlocks: [Self.block], peerTimeoutMs: peerTimeoutMs)
        options.disks = disks
        options.diskFolder = diskFolder
        try startWorker()
        let (listener, connections, current, verdict) = (listener, connections, current, verdict)
        Thread.detachNewThread {
            while true {
                guard let accepted = try? acceptConnection(listener, until: nil) else { return }
                let deadline = MonotonicTime.now.adding(milliseconds: 2000)
                guard let peer = try? Handshake.accept(accepted.raw, secret: Self.secret, deadline: deadline), peer.session == current.read({ $0.session }) else { continue }
                let answer = verdict.read { $0 }
                try? Handshake.conclude(accepted.raw, answer, deadline: deadline)
                guard case .welcome = answer else { continue }
                connections.change { $0.append(dup(accepted.raw)) }
                current.read { $0.parent }?.send(.connection, fd: accepted.raw)
            }
        }
    }

    deinit {
        shutdown(listener, Int32(SHUT_RDWR))
        parent?.close_()
        _ = run?.result(seconds: 2)
        for fd in connections.read({ $0 }) {
            shutdown(fd, Int32(SHUT_RDWR))
            close(fd)
        }
        // The numbers stay open: a receive thread may be at work still, and must not meet somebody else's files under them.
    }

    var parent: Parent? { current.read { $0.parent } }

    func memory() throws -> ShadowMemory {
        try ShadowMemory([.init(Self.block, fd: ram)], journalFD: journal, stateFD: state, header: options.knownHeader)
    }

    func startWorker() throws {
        let parent = try Parent()
        let channel = WorkerChannel(Descriptor(owning: parent.workerSide))
        let worker = try ShadowWorker(options: options, parent: channel, statistics: statistics, memory: try memory())
        run = Running { worker.run() }
        current.change { $0.parent = parent }
    }

    /// Another session of the same guest begins, with a worker of its own.
    /// - Parameters:
    ///   - losesFiles: as after the end of the service: without the files of the one before.
    ///   - header: what the memory was filled for, where that is known.
    func beginSession(losesFiles: Bool = false, header: StreamHeader? = nil) throws {
        stopWorker()
        if losesFiles { (journal, state) = try ShadowWorker.makeFiles() }
        options.knownHeader = header
        options.session = current.change {
            $0.session = UUID()
            return $0.session
        }
        try startWorker()
    }

    /// The service goes away, whatever arrives at that moment.
    func orphanWorker() {
        let old = current.change { current in
            defer { current.parent = nil }
            return current.parent
        }
        old?.close_()
        XCTAssertEqual(run?.result(), 0)
    }

    /// Breaks all connections and ends the worker, as a crash would: nothing is finished that is not.
    func stopWorker() {
        let old = current.change { current in
            defer { current.parent = nil }
            return current.parent
        }
        cut()
        let deadline = MonotonicTime.now.adding(milliseconds: 3000)
        while statistics[.linkUp] == 1, deadline > .now { usleep(1000) }
        old?.close_()
        XCTAssertEqual(run?.result(), 0)
    }

    func cut() {
        for fd in connections.change({ list in defer { list = [] }; return list }) {
            shutdown(fd, Int32(SHUT_RDWR))
            close(fd)
        }
    }

    func waitForCommit(_ epoch: UInt64, ms: Double = 8000) -> Bool {
        let deadline = MonotonicTime.now.adding(milliseconds: ms)
        while statistics[.committedEpoch] < epoch {
            if deadline < .now { return false }
            usleep(500)
        }
        return true
    }

    /// What the memory files hold. Only while nothing arrives.
    func digest() throws -> (epoch: UInt64, digest: GuestDigest) {
        let memory = try memory()
        let video = memory.page(PageLocation(block: 1, offset: 0)).map {
            UnsafeRawBufferPointer(start: $0, count: QEMUStandIn.videoPages * 4096)
        } ?? UnsafeRawBufferPointer(start: nil, count: 0)
        return withExtendedLifetime(memory) {
            (memory.committedEpoch, GuestDigest(ram: GuestDigest.of(UnsafeRawBufferPointer(start: view.base, count: view.length)),
                                                video: GuestDigest.of(video), device: GuestDigest.of(memory.deviceState)))
        }
    }
}

func boundPort(_ fd: Int32) -> UInt16 {
    var address = sockaddr_in()
    var length = socklen_t(MemoryLayout<sockaddr_in>.size)
    _ = withUnsafeMutablePointer(to: &address) { $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { getsockname(fd, $0, &length) } }
    return UInt16(bigEndian: address.sin_port)
}

/// A network between the hosts that can be slow, break and damage what crosses it.
final class Proxy: @unchecked Sendable {
    struct Faults {
        /// Nothing is read from the source while this holds.
        var stalled = false
        /// Ends the connection after so many bytes from the source, once.
        var cutAfter: Int?
        /// Flips a bit in this byte from the source, once.
        var flipAt: Int?
        /// New connections are closed at once.
        var refuses = false
        var bytesPerMillisecond: Int?
    }
    let faults = Guarded(Faults())
    /// Bytes from the source, of each connection.
    let forwarded = Guarded<[Int]>([])
    let port: UInt16
    private let listener: Int32

    init(to target: UInt16) throws {
        let socket = try TCP.listen(Endpoint(address: "127.0.0.1", port: 0))
        var small: Int32 = 64 << 10
        setsockopt(socket.raw, SOL_SOCKET, SO_RCVBUF, &small, 4)
        listener = socket.release()
        port = boundPort(listener)
        let (listener, faults, forwarded) = (listener, faults, forwarded)
        Thread.detachNewThread {
            while true {
                guard let source = try? acceptConnection(listener, until: nil) else { return }
                if faults.read({ $0.refuses }) { continue }
                guard let shadow = try? TCP.connect(Endpoint(address: "127.0.0.1", port: target), deadline: .now.adding(milliseconds: 1000))
                else { continue }
                let pair = Both(source.release(), shadow.release())
                let number = forwarded.change { $0.append(0); return $0.count - 1 }
                Thread.detachNewThread { pair.pump(pair.shadow, pair.source) { _, _ in true } }
                Thread.detachNewThread {
                    pair.pump(pair.source, pair.shadow, before: {
                        while faults.read({ $0.stalled }), !pair.isOver { usleep(1000) }
                    }) { buffer, count in
                        let start = forwarded.read { $0[number] }
                        let (goes, rate) = faults.change { faults -> (Int, Int?) in
                            if let at = faults.flipAt, at < start + count.pointee {
                                buffer[max(0, at - start)] ^= 0x10
                                faults.flipAt = nil
                            }
                            if let cut = faults.cutAfter, cut < start + count.pointee {
                                faults.cutAfter = nil
                                return (max(0, cut - start), nil)
                            }
                            return (count.pointee, faults.bytesPerMillisecond)
                        }
                        let isWhole = goes == count.pointee
                        count.pointee = goes
                        forwarded.change { $0[number] += goes }
                        if let rate { usleep(UInt32(goes * 1000 / rate)) }
                        return isWhole
                    }
                }
            }
        }
    }

    deinit { shutdown(listener, Int32(SHUT_RDWR)) }

    private final class Both: @unchecked Sendable {
        let source: Int32
        let shadow: Int32
        private let over = Guarded(false)
        var isOver: Bool { over.read { $0 } }
        init(_ source: Int32, _ shadow: Int32) { (self.source, self.shadow) = (source, shadow) }
        deinit {
            close(source)
            close(shadow)
        }

        func pump(_ from: Int32, _ to: Int32, before: () -> Void = {}, _ body: (UnsafeMutablePointer<UInt8>, UnsafeMutablePointer<Int>) -> Bool) {
            let buffer = UnsafeMutablePointer<UInt8>.allocate(capacity: 16 << 10)
            defer { buffer.deallocate() }
            while true {
                before()
                var n = recv(from, buffer, 16 << 10, 0)
                guard n > 0 else { break }
                let goesOn = body(buffer, &n)
                var done = 0
                while done < n {
                    let sent = Glibc.send(to, buffer + done, n - done, Int32(MSG_NOSIGNAL))
                    if sent <= 0 { break }
                    done += sent
                }
                if done < n || !goesOn { break }
            }
            over.change { $0 = true }
            shutdown(source, Int32(SHUT_RDWR))
            shutdown(shadow, Int32(SHUT_RDWR))
        }
    }
}

/// Several shadows, each behind a network of its own, as a source worker is told of them.
func sourcePeers(_ shadows: [ShadowHost], _ proxies: [Proxy], _ multiples: [Int]) -> [SourcePeer] {
    multiples.indices.map { index in
        SourcePeer(session: shadows[index].session, peer: "host-\(index)", address: "127.0.0.1", port: proxies[index].port, multiple: multiples[index])
    }
}

/// A source worker with its QEMU, a network, and a shadow.
final class Rig {
    let shadow: ShadowHost
    let proxy: Proxy
    let parent: Parent
    let worker: SourceWorker
    let statistics: SharedStatistics
    let run: Running<Int32>
    let qemu: QEMUStandIn
    let path: String
    /// The guest's disks; they are copied first, by the test.
    let disks: DiskBench?

    init(seed: UInt64, ceilingBytes: Int = 64 << 20, intervalMs: Double = 1, intervalLimitMs: Double = 20, peerTimeoutMs: Double = 2000,
         secret: String = "rig", firstCopy: Bool = true, disks: DiskBench? = nil, shadow: ShadowHost? = nil, memory: [[UInt8]]? = nil) throws {
        signal(SIGPIPE, SIG_IGN)
        self.disks = disks
        let shadow = try shadow ?? ShadowHost(peerTimeoutMs: peerTimeoutMs, disks: disks?.replicas ?? [], diskFolder: disks?.folder ?? "")
        self.shadow = shadow
        proxy = try Proxy(to: shadow.port)
        parent = try Parent()
        path = NSTemporaryDirectory() + "sv-\(getpid())-\(UUID().uuidString.prefix(8)).sock"
        var options = SourceWorkerOptions(
            session: shadow.session, domain: "rig", host: "host-a", peer: "host-b", peerAddress: "127.0.0.1", peerPort: proxy.port,
            secret: Data(secret.utf8), streamPath: path, streamOwner: getuid(), streamGroup: getgid(), intervalMs: intervalMs,
            intervalLimitMs: intervalLimitMs, ceilingBytes: ceilingBytes, keepaliveMs: 50, peerTimeoutMs: peerTimeoutMs)
        options.disks = disks?.captured ?? []
        options.diskPath = disks?.socketPath ?? ""
        let file = try memoryFile("rig-statistics", bytes: SharedStatistics.bytes)
        let statistics = try SharedStatistics(file.raw)
        // No libvirt here, so nobody who could resume the guest, and no events that would prove an epoch (ProofTests).
        statistics[.eventsAway] = 1
        self.statistics = statistics
        let worker = try SourceWorker(options: options, parent: WorkerChannel(Descriptor(owning: parent.workerSide)), statistics: statistics)
        self.worker = worker
        run = Running { worker.run() }
        _ = parent.event(.ready)
        qemu = try QEMUStandIn(path, seed: seed, memory: memory)
        if firstCopy, disks == nil { try qemu.firstCopy() }
    }

    deinit {
        // Whatever the test left standing must not go on beside the next one.
        parent.send(.stop)
        parent.close_()
        qemu.hangUp()
        _ = run.result(seconds: 3)
    }

    /// The guest runs on without us; a later session can begin.
    func end() {
        parent.send(.stop)
        qemu.hangUp()
        XCTAssertEqual(run.result(), 0, lastWords)
    }

    func epochs(_ count: Int, pages: Int = 12) throws {
        for _ in 0..<count { try qemu.runEpoch(pages: pages) }
    }

    /// The shadow holds the newest epoch, and exactly that.
    func assertInStep(_ what: String = "", file: StaticString = #filePath, line: UInt = #line) throws {
        XCTAssertTrue(shadow.waitForCommit(qemu.epoch), "Epoch \(qemu.epoch) not committed; \(what); \(lastWords)", file: file, line: line)
        let held = try shadow.digest()
        XCTAssertEqual(held.epoch, qemu.epoch, what, file: file, line: line)
        XCTAssertEqual(held.digest, qemu.history[held.epoch], "Epoch \(held.epoch) differs; \(what)", file: file, line: line)
    }

    /// The shadow holds some epoch, whole.
    func assertWhole(_ what: String, file: StaticString = #filePath, line: UInt = #line) throws -> UInt64 {
        let held = try shadow.digest()
        if held.epoch > 0 { XCTAssertEqual(held.digest, qemu.history[held.epoch], "Epoch \(held.epoch) differs; \(what)", file: file, line: line) }
        return held.epoch
    }

    func eventually(_ what: String, ms: Double = 5000, file: StaticString = #filePath, line: UInt = #line, _ condition: () -> Bool) {
        let deadline = MonotonicTime.now.adding(milliseconds: ms)
        while !condition() {
            if deadline < .now { return XCTFail("Never: \(what); \(lastWords)", file: file, line: line) }
            usleep(2000)
        }
    }

    var lastWords: String {
        let mine = parent.events.read { $0.suffix(5).map { "\($0.kind) \($0.reason ?? "")" } }
        let theirs = shadow.parent?.events.read { $0.suffix(5).map { "\($0.kind) \($0.reason ?? "")" } } ?? []
        return "source: \(mine), shadow: \(theirs)"
    }
}
