import Foundation
import Glibc
import Platform
import XCTest
@testable import Replication

/// A source worker of the engine `periodic` with its QEMU and several shadows, each behind a network of its own.
final class PassRig {
    let shadows: [ShadowHost]
    let proxies: [Proxy]
    let parent: Parent
    let worker: SourceWorker
    let statistics: SharedStatistics
    let run: Running<Int32>
    let qemu: QEMUStandIn
    /// The guest's disks; the first is what it writes to, and each has a shadow's replicas.
    let benches: [DiskBench]
    /// What the disks held at each pass.
    private var disks: [UInt64: [[UInt8]]] = [:]
    private let path: String
    private let file: Descriptor
    /// The number of the last pass that became an epoch.
    private var sealed: UInt64 = 0

    init(seed: UInt64, multiples: [Int] = [1, 1], ceilingBytes: Int = 64 << 20, benches: [DiskBench] = []) throws {
        signal(SIGPIPE, SIG_IGN)
        self.benches = benches
        shadows = try multiples.indices.map { index in
            let bench = benches.isEmpty ? nil : benches[index]
            return try ShadowHost(peerTimeoutMs: 2000, disks: bench?.replicas ?? [], diskFolder: bench?.folder ?? "")
        }
        proxies = try shadows.map { try Proxy(to: $0.port) }
        parent = try Parent()
        path = NSTemporaryDirectory() + "sv-\(getpid())-\(UUID().uuidString.prefix(8)).sock"
        let peers = sourcePeers(shadows, proxies, multiples)
        var options = SourceWorkerOptions(domain: "rig", host: "host-a", peers: peers, secret: Data("rig".utf8), streamPath: path, streamOwner: getuid(), streamGroup: getgid(),
                                          intervalMs: 1000, intervalLimitMs: 2000, ceilingBytes: ceilingBytes, keepaliveMs: 50, peerTimeoutMs: 2000)
        options.engine = .periodic
        options.disks = benches.first?.captured ?? []
        options.diskPath = benches.first?.socketPath ?? ""
        file = try memoryFile("rig-statistics", bytes: SharedStatistics.bytes)
        let statistics = try SharedStatistics(file.raw)
        self.statistics = statistics
        let worker = try SourceWorker(options: options, parent: WorkerChannel(Descriptor(owning: parent.workerSide)), statistics: statistics)
        self.worker = worker
        run = Running { worker.run() }
        _ = parent.event(.ready)
        qemu = try QEMUStandIn(nil, seed: seed)
        for index in multiples.indices { XCTAssertNotNil(parent.event(.memoryKnown, index), lastWords) }
        if let bench = benches.first {
            XCTAssertNotNil(parent.event(.disksPrepared), lastWords)
            try bench.connect()
            try bench.copy(guestWrites: 20)
            parent.send(.disksReady)
            XCTAssertNotNil(parent.event(.disksFollowing), lastWords)
        }
    }

    deinit {
        parent.send(.stop)
        parent.close_()
        for client in benches.first?.clients ?? [] { client.hangUp() }
        _ = run.result(seconds: 3)
    }

    enum End: Equatable { case committed(isComplete: Bool), failed(String) }

    /// One pass, from the order to what became of it.
    @discardableResult
    func pass(changes: Int = 12, diskWrites: Int = 8, peer: Int? = nil, kind: PassKind = .snapshot) throws -> End {
        let (read, done, failed) = (parent.count(.passRead), parent.count(.passCommitted), parent.count(.passFailed))
        try benches.first?.write(diskWrites)
        disks[sealed + 1] = benches.first?.content
        parent.order(WorkerCommand(.takePass, pass: kind, peer: peer))
        try qemu.sendPass(sealed + 1, to: path, changes: changes)
        if parent.event(.passRead, read) != nil {
            let now = SharedStatistics.realtimeNanoseconds
            parent.order(WorkerCommand(.seal, stoppedAt: now - 1000, resumedAt: now))
        }
        let end: End? = parent.events.wait(until: .now.adding(milliseconds: 15_000)) { events in
            let (committed, lost) = (events.filter { $0.kind == .passCommitted }, events.filter { $0.kind == .passFailed })
            if committed.count > done { return .committed(isComplete: committed[done].isWhole ?? false) }
            return lost.count > failed ? .failed(lost[failed].reason ?? "") : nil
        }
        if case .committed = end { sealed += 1 } else if statistics[.epochsTotal] > sealed { sealed = statistics[.epochsTotal] }
        return try XCTUnwrap(end, lastWords)
    }

    /// The shadow holds this pass, and exactly that: memory and disks.
    func assertHolds(_ index: Int, _ number: UInt64, _ what: String = "", file: StaticString = #filePath, line: UInt = #line) throws {
        XCTAssertTrue(shadows[index].waitForCommit(number), "Shadow \(index) stands at \(shadows[index].statistics[.committedEpoch]), not \(number); \(what); \(lastWords)", file: file, line: line)
        let held = try shadows[index].digest()
        XCTAssertEqual(held.epoch, number, what, file: file, line: line)
        XCTAssertEqual(held.digest, qemu.history[number], "Shadow \(index): pass \(number) differs; \(what)", file: file, line: line)
        guard benches.indices.contains(index), let content = disks[number] else { return }
        // An epoch is acknowledged when its writes are in the replicas.
        eventually("shadow \(index) is known to hold \(number)", file: file, line: line) { statistics[index, .committedEpoch] == number }
        for disk in content.indices { XCTAssertTrue(try benches[index].file(disk) == content[disk], "Shadow \(index): disk \(disk) is not that of pass \(number); \(what)", file: file, line: line) }
    }

    /// Each shadow is there, and has all that it was given.
    func awaitIdle(file: StaticString = #filePath, line: UInt = #line) {
        eventually("all are there", file: file, line: line) { worker.followers.allSatisfy { $0[.linkUp] == 1 && $0.backlog.isComplete } }
    }

    func eventually(_ what: String, ms: Double = 10_000, file: StaticString = #filePath, line: UInt = #line, _ condition: () -> Bool) {
        let deadline = MonotonicTime.now.adding(milliseconds: ms)
        while !condition() {
            if deadline < .now { return XCTFail("Never: \(what); \(lastWords)", file: file, line: line) }
            usleep(2000)
        }
    }

    var lastWords: String { parent.events.read { $0.suffix(6).map { "\($0.kind) \($0.peer ?? -1) \($0.reason ?? "")" } }.description }
}
