import Foundation
import MigrationStream
import Platform
import ReplicaStore
import XCTest
@testable import Replication

final class DiskEndToEndTests: XCTestCase {
    private static let sizes = [(2 << 20) + 512, 700_000]

    /// A rig whose disks are copied and whose first epochs are committed.
    private func rig(_ seed: UInt64, epochs: Int = 3, ceilingBytes: Int = 64 << 20, peerTimeoutMs: Double = 3000,
                     home: TemporaryFolder? = nil) throws -> Rig {
        let bench = try DiskBench(Self.sizes, seed: seed, home: home)
        let rig = try Rig(seed: seed, ceilingBytes: ceilingBytes, peerTimeoutMs: peerTimeoutMs, disks: bench)
        try rig.copyDisks()
        try rig.diskEpochs(epochs)
        if epochs > 0 { try rig.assertAllInStep("at the start") }
        return rig
    }

    func testCopyAndEpochs() throws {
        let rig = try rig(100)
        for round in 0..<15 {
            try rig.diskEpochs(2, writes: 25)
            try rig.assertAllInStep("round \(round)")
        }
        // Epochs without a disk write, and without a page.
        try rig.diskEpochs(1, writes: 0)
        try rig.diskEpochs(1, writes: 5, pages: 0)
        // More writes than a frame takes.
        try rig.bench.write(600, most: 20_000)
        try rig.diskEpochs(1)
        try rig.assertAllInStep()
        XCTAssertEqual(rig.parent.count(.linkLost) + rig.parent.count(.failed), 0, rig.lastWords)
        rig.eventually("committed") { rig.statistics[.committedEpoch] == rig.qemu.epoch }
        try rig.diskEpochs(1, writes: 0)
        XCTAssertLessThanOrEqual(rig.statistics[.diskHeldBytes], 8 << 20)
    }

    /// The pieces of the first copy, while the guest writes into what is copied.
    func testTheGuestWritesDuringTheCopy() throws {
        let bench = try DiskBench([9 << 20], seed: 101)
        let rig = try Rig(seed: 101, disks: bench)
        XCTAssertNotNil(rig.parent.event(.disksPrepared))
        try bench.connect()
        for round in 0..<4 {
            try bench.copy(guestWrites: 60)
            try bench.write(0, round << 20, [UInt8](repeating: UInt8(round), count: 1 << 20))
        }
        try bench.flush()
        try rig.followDisks()
        try bench.write(30)
        try rig.qemu.firstCopy()
        try bench.write(30)
        try rig.diskEpochs(2)
        try rig.assertAllInStep()
    }

    /// A second session finds what the first left, and sends what differs.
    func testResyncByDifference() throws {
        let home = try TemporaryFolder()
        var content: [[UInt8]] = []
        do {
            let first = try rig(102, home: home)
            content = first.bench.content
            first.shadow.stopWorker()
        }
        XCTAssertTrue(FileManager.default.fileExists(atPath: home.path + "/state/disk-0.chunks"), "Saved on a clean stop")
        let bench = try DiskBench(Self.sizes, seed: 103, home: home)
        bench.content = content
        bench.fill(0, 200_000, 100)
        bench.fill(0, 2 << 20, 512)
        bench.fill(1, 65_536 * 3, 65_536)
        let second = try Rig(seed: 103, disks: bench)
        try second.copyDisks(guestWrites: 0)
        try second.diskEpochs(1, writes: 0)
        try second.assertAllInStep()
        // Chunks 3 and 32 (of 512 bytes) of one disk, chunk 3 of the other.
        XCTAssertEqual(second.statistics[.diskBytesSent], 65_536 + 512 + 65_536)
        XCTAssertEqual(second.shadow.statistics[.diskHashTotal], UInt64(Self.sizes[0] + Self.sizes[1]))
        XCTAssertEqual(second.shadow.statistics[.diskHashedBytes], UInt64(Self.sizes[0] + Self.sizes[1]))
        try second.diskEpochs(3)
        try second.assertAllInStep()
    }

    // MARK: Breaks

    func testBreakInTheCopy() throws {
        let bench = try DiskBench([6 << 20], seed: 104)
        let rig = try Rig(seed: 104, disks: bench)
        XCTAssertNotNil(rig.parent.event(.disksPrepared))
        try bench.connect()
        try bench.copy()
        rig.eventually("a piece on its way") { rig.statistics[.diskBytesSent] > 0 }
        rig.shadow.cut()
        XCTAssertEqual(rig.parent.event(.sessionLost)?.reason, "The connection broke during the first copy")
        // The guest does not wait for a session that is over, nor does the mirror hear of it.
        let start = MonotonicTime.now
        try bench.clients[0].request(.write, 0, 512, [UInt8](repeating: 1, count: 512))
        XCTAssertEqual(try bench.clients[0].collect(), 0)
        XCTAssertLessThan(MonotonicTime.now.milliseconds(since: start), 1000)
        rig.parent.send(.disksReady)
        XCTAssertEqual(rig.parent.event(.failed)?.reason, "The connection broke during the first copy")
    }

    /// Regression: as soon as the replicas were known a break ended the session, although nothing had been sent. And what the source has
    /// found out since then must not be forgotten over the hashes that come again.
    func testBreakBeforeTheFirstPiece() throws {
        let home = try TemporaryFolder()
        var content: [[UInt8]] = []
        do {
            let first = try rig(105, home: home)
            content = first.bench.content
            first.shadow.stopWorker()
        }
        for replacesWorker in [false, true] {
            let bench = try DiskBench(Self.sizes, seed: 106, home: home)
            bench.content = content
            let rig = try Rig(seed: 106, disks: bench)
            XCTAssertNotNil(rig.parent.event(.disksPrepared))
            try bench.connect()
            let old = Array(content[0][..<65_536])
            try bench.copy()
            bench.fill(0, 0, 65_536)
            try bench.write(0, 0, Array(bench.content[0][..<65_536]))
            try bench.flush()
            XCTAssertEqual(rig.statistics[.diskBytesSent], 0, "The test is pointless otherwise")
            if replacesWorker {
                rig.shadow.stopWorker()
                try rig.shadow.startWorker()
            } else {
                rig.shadow.cut()
            }
            XCTAssertNotNil(rig.parent.event(.linkLost))
            rig.eventually("connected again") { rig.statistics[.linkUp] == 1 }
            // Looks like what the replica held, which what waits here is going to overwrite.
            try bench.write(0, 0, old)
            try bench.flush()
            try rig.followDisks()
            try rig.qemu.firstCopy()
            try rig.diskEpochs(2)
            try rig.assertAllInStep()
            XCTAssertEqual(rig.parent.count(.sessionLost), 0)
            content = bench.content
            rig.shadow.stopWorker()
        }
    }

    /// The connection breaks anywhere, and every other time the shadow's worker is replaced: memory and disks are of one epoch.
    func testCutsAnywhere() throws {
        var random = SeededGenerator(seed: 107)
        let rig = try rig(107)
        for round in 0..<14 {
            let now = rig.proxy.forwarded.read { $0.last ?? 0 }
            rig.proxy.faults.change { $0.cutAfter = now + Int(random.next() % 900_000) }
            var tries = 0
            while rig.proxy.faults.read({ $0.cutAfter }) != nil, tries < 40 {
                try rig.diskEpochs(1, writes: 15)
                tries += 1
            }
            if round % 2 == 0 {
                rig.shadow.stopWorker()
                let held = try rig.assertAllWhole("round \(round)")
                XCTAssertGreaterThan(held, 0)
                try rig.shadow.startWorker()
                XCTAssertEqual(rig.shadow.parent?.event(.ready)?.epoch, held)
            }
            try rig.diskEpochs(1)
            try rig.assertAllInStep("round \(round)")
        }
        XCTAssertEqual(rig.parent.count(.sessionLost) + rig.parent.count(.failed), 0, rig.lastWords)
    }

    /// A flipped bit somewhere, mostly in disk data: noticed, nothing of it applied, sent again.
    func testDamageOnTheWay() throws {
        var random = SeededGenerator(seed: 108)
        let rig = try rig(108)
        for round in 0..<12 {
            let now = rig.proxy.forwarded.read { $0.last ?? 0 }
            rig.proxy.faults.change { $0.flipAt = now + Int(random.next() % 400_000) }
            var tries = 0
            while rig.proxy.faults.read({ $0.flipAt }) != nil, tries < 40 {
                try rig.diskEpochs(1, writes: 15, pages: 2)
                tries += 1
            }
            rig.eventually("the damage of round \(round) was noticed") { rig.parent.count(.linkLost) == round + 1 }
            try rig.diskEpochs(1)
            try rig.assertAllInStep("round \(round)")
        }
        XCTAssertEqual(rig.parent.count(.sessionLost), 0)
        XCTAssertEqual(rig.shadow.parent?.count(.sessionLost), 0)
    }

    /// Regression: a service that went away had the replicas closed while epochs were still being received into them.
    func testServiceOfTheShadowGoesWhileEpochsArrive() throws {
        let rig = try rig(109)
        let over = Guarded(false)
        let driver = Driver(rig)
        let guest = Running<String> {
            do { while !over.read({ $0 }) { try driver.rig.diskEpochs(1, writes: 4, pages: 3) } } catch { return "\(error)" }
            return "fine"
        }
        var held: [(epoch: UInt64, disks: [[UInt8]])] = []
        for round in 0..<10 {
            usleep(30_000 + UInt32(round) * 7000)
            rig.shadow.orphanWorker()
            held.append((try rig.shadow.digest().epoch, try [driver.rig.bench.file(0), driver.rig.bench.file(1)]))
            try rig.shadow.startWorker()
            XCTAssertEqual(rig.shadow.parent?.event(.ready)?.epoch, held.last?.epoch, rig.lastWords)
        }
        over.change { $0 = true }
        XCTAssertEqual(guest.result(), "fine")
        for (epoch, disks) in held { XCTAssertTrue(disks == rig.bench.history[epoch], "epoch \(epoch)") }
        try rig.assertAllInStep()
    }

    private final class Driver: @unchecked Sendable {
        let rig: Rig
        init(_ rig: Rig) { self.rig = rig }
    }

    // MARK: The shadow's worker, step by step

    /// A worker that was killed at each step of a commit: its successor has memory and disks of one epoch.
    func testSuccessorAfterEachStepOfACommit() throws {
        let rig = try rig(110)
        let (shadow, bench) = (rig.shadow, rig.bench)
        rig.parent.send(.stop)
        XCTAssertEqual(rig.run.result(), 0)
        for step in ["prepared", "complete", "memory applied", "applied"] {
            let last = shadow.statistics[.committedEpoch]
            shadow.stopWorker()
            let memory = try shadow.memory()
            let replicas = try ReplicaSet(folder: bench.folder, session: shadow.session, disks: bench.replicas, committed: last)
            XCTAssertEqual(replicas.state, .consistent(epoch: last))
            let end = try frames(of: last + 1, into: memory)
            var bytes = noise(70_000, &bench.random)
            bytes.withUnsafeMutableBytes { buffer in
                replicas.stage(DiskExtent(disk: 0, kind: .data, offset: 1000, length: 70_000), buffer.baseAddress)
                replicas.stage(DiskExtent(disk: 1, kind: .zero, offset: 600_000, length: 5000), nil)
            }
            try bytes.withUnsafeBytes { _ in
                try replicas.prepare(epoch: last + 1)
                if step != "prepared" { memory.complete(last + 1, end: end) }
                if step.hasSuffix("applied") { memory.apply(last + 1, end: end) }
                if step == "applied" { try replicas.apply(epoch: last + 1) }
            }
            try replicas.close(clean: false)
            let expected = step == "prepared" ? last : last + 1
            if expected > last {
                bench.content = try XCTUnwrap(bench.history[last])
                bench.content[0].replaceSubrange(1000..<71_000, with: bytes)
                bench.content[1].replaceSubrange(600_000..<605_000, with: repeatElement(0, count: 5000))
                bench.remember(expected)
            }
            try shadow.startWorker()
            XCTAssertEqual(shadow.parent?.event(.ready)?.epoch, expected, step)
            try bench.assertReplicas(expected, step)
        }
    }

    /// An epoch of one page and device state, as received into the memory's journal.
    private func frames(of epoch: UInt64, into memory: ShadowMemory) throws -> Int {
        let pool = ChunkPool(limitBytes: 1 << 20)
        let page = UnsafeMutableRawPointer.allocate(byteCount: 4096, alignment: 16)
        defer { page.deallocate() }
        memset(page, Int32(epoch), 4096)
        let captured = CapturedEpoch(number: epoch, pool: pool)
        captured.append(PageLocation(block: 0, offset: 8 << 12), bytes: page)
        captured.setDevice(UnsafeRawBufferPointer(start: page, count: 100))
        let pair = try LinkPair()
        _ = try pair.a.send(captured)
        let count = Int(pair.a.bytesSent)
        let bytes = try readFully(pair.b.raw, count: count, deadline: .now.adding(milliseconds: 1000), during: "a test")
        let slot = try memory.journalSlot(at: ShadowMemory.journalStart)
        bytes.withUnsafeBytes { slot.copyMemory(from: $0.baseAddress!, byteCount: count) }
        return ShadowMemory.journalStart + count
    }

    // MARK: Mutations

    /// Frames of disk writes with flipped bytes, once as the line damages them and once as a peer that computes their checksum: nothing
    /// reaches the replicas, and the next connection goes on.
    func testMutatedFrames() throws {
        let rig = try rig(111)
        let (shadow, bench) = (rig.shadow, rig.bench)
        rig.parent.send(.stop)
        XCTAssertEqual(rig.run.result(), 0)
        let last = shadow.statistics[.committedEpoch]
        let secret = PageHash()
        let pristine = try diskFrame(last + 1, secret)
        let before = try [bench.file(0), bench.file(1)]
        var random = SeededGenerator(seed: 112)
        var named: Set<String> = []
        for round in 0..<150 {
            var frame = pristine
            let recomputes = round % 2 == 1
            let entries = 40 + 8 * 24
            for _ in 0..<(1 + round % 3) {
                let at = recomputes ? 32 + Int(random.next() % UInt64(entries - 32)) : Int(random.next() % UInt64(frame.count))
                frame[at] ^= UInt8(1 << (random.next() % 8))
            }
            if recomputes {
                let checksum = secret.withHasher { hasher in frame.withUnsafeBytes { hasher.hash64($0.baseAddress! + 8, entries - 8) } }
                frame.replaceSubrange(..<8, with: withUnsafeBytes(of: checksum.littleEndian) { Array($0) })
            }
            if let reason = try feed(frame, shadow, bench, secret) { named.insert(String(reason.prefix { !$0.isNumber })) }
        }
        XCTAssertEqual(try feed(pristine, shadow, bench, secret), nil, "A sound frame is taken")
        XCTAssertTrue(try [bench.file(0), bench.file(1)] == before)
        XCTAssertEqual(shadow.statistics[.committedEpoch], last)
        XCTAssertGreaterThan(named.count, 2, "\(named)")
        // Named are the disk and the place that does not exist.
        let outside = try diskFrame(last + 1, secret, offset: UInt64(Self.sizes[0]) - 511)
        XCTAssertEqual(try feed(outside, shadow, bench, secret), "Frame 1 writes 512 bytes at \(Self.sizes[0] - 511) of disk 0, which do not exist")
        let unknown = try diskFrame(last + 1, secret, disk: 2)
        XCTAssertEqual(try feed(unknown, shadow, bench, secret), "Frame 1 writes 512 bytes at 4096 of disk 2, which do not exist")
    }

    private func diskFrame(_ number: UInt64, _ hash: PageHash, disk: Int = 0, offset: UInt64 = 4096) throws -> [UInt8] {
        let epoch = CapturedEpoch(number: number, pool: ChunkPool(limitBytes: 1 << 20))
        let bytes = [UInt8](repeating: 0xee, count: 9000)
        return try bytes.withUnsafeBytes { buffer in
            epoch.disks.records = [
                DiskRecord(extent: DiskExtent(disk: disk, kind: .data, offset: offset, length: 512), bytes: buffer.baseAddress),
                DiskRecord(extent: DiskExtent(disk: 1, kind: .zero, offset: 0, length: 100_000)),
                DiskRecord(extent: DiskExtent(disk: 0, kind: .data, offset: 70_001, length: 9000), bytes: buffer.baseAddress),
                DiskRecord(extent: DiskExtent(disk: 1, kind: .trim, offset: 699_000, length: 1000)),
            ]
            let pair = try LinkPair(hash)
            // The introduction was frame 0.
            try pair.a.send(.heartbeat, blob: UnsafeRawBufferPointer(start: nil, count: 0))
            let skip = Int(pair.a.bytesSent)
            _ = try pair.a.send(epoch)
            let count = Int(pair.a.bytesSent)
            let all = try readFully(pair.b.raw, count: count, deadline: .now.adding(milliseconds: 1000), during: "a test")
            return Array(all[skip...])
        }
    }

    /// Introduces a source to the worker and sends it a frame; why the worker refused it, nil when it did not.
    private func feed(_ frame: [UInt8], _ shadow: ShadowHost, _ bench: DiskBench, _ secret: PageHash) throws -> String? {
        var ends: [Int32] = [-1, -1]
        guard socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends) == 0 else { throw SystemError("socketpair") }
        shadow.parent?.send(.connection, fd: ends[1])
        close(ends[1])
        let link = Link(Descriptor(owning: ends[0]), hash: secret, stallMilliseconds: 2000)
        let hello = Hello(domain: "rig", hashSecret: Data(secret.secret), disks: bench.captured.map(\.byteCount), firstEpoch: 0)
        try link.send(.hello, data: JSONEncoder().encode(hello))
        let buffer = FrameBuffer()
        XCTAssertEqual(try link.receive(to: buffer.base, deadline: .now.adding(milliseconds: 5000)).type, .welcome)
        try? writeFully(link.raw, frame, deadline: .now.adding(milliseconds: 2000), during: "a test")
        // Whatever it waits for does not come.
        shutdown(link.raw, Int32(SHUT_WR))
        while let answer = try? link.receive(to: buffer.base, deadline: .now.adding(milliseconds: 5000)) {
            guard answer.type == .failure else { continue }
            return String(decoding: try link.blob(answer, buffer.base), as: UTF8.self)
        }
        return nil
    }

    // MARK: Holding, ending

    func testHoldWithDiskWrites() throws {
        let rig = try rig(113)
        for round in 0..<3 {
            try rig.bench.write(10)
            rig.parent.send(.hold)
            usleep(20_000)
            XCTAssertTrue(try rig.qemu.request(ms: 3000))
            try rig.bench.write(10)
            rig.bench.remember(rig.qemu.epoch + 1)
            try rig.qemu.write(rig.qemu.capture(20))
            XCTAssertNotNil(rig.parent.event(.held, round), rig.lastWords)
            try rig.assertAllInStep("held")
            rig.parent.send(.release)
            XCTAssertTrue(try rig.qemu.awaitLoaded(ms: 2000))
            try rig.diskEpochs(3)
            try rig.assertAllInStep("released")
        }
    }

    /// The guest starts here: its disks are flushed, free for QEMU's locks, and nobody's epoch any more.
    func testActivationUnlocksTheReplicas() throws {
        let rig = try rig(114)
        let bench = rig.bench
        XCTAssertThrowsError(try ReplicaImage(path: bench.replicas[0].path, byteCount: bench.replicas[0].byteCount), "Locked as QEMU locks")
        rig.parent.send(.stop)
        XCTAssertEqual(rig.run.result(), 0)
        let path = NSTemporaryDirectory() + "sv-a-\(UUID().uuidString.prefix(8)).sock"
        let fd = try UnixSocket.listen(path, mode: 0o600).release()
        let stream = Running<Int> {
            guard let qemu = try? acceptConnection(fd, until: .now.adding(milliseconds: 5000)) else { return -1 }
            var total = 0
            var buffer = [UInt8](repeating: 0, count: 1 << 16)
            while true {
                let count = recv(qemu.raw, &buffer, buffer.count, 0)
                if count <= 0 { return total }
                total += count
            }
        }
        rig.shadow.parent?.send(.activate, path: path)
        XCTAssertEqual(rig.shadow.parent?.event(.activated)?.epoch, rig.qemu.epoch, rig.lastWords)
        XCTAssertGreaterThan(stream.result() ?? 0, 1000)
        try bench.assertReplicas(rig.qemu.epoch, "activated")
        for disk in bench.replicas { XCTAssertNoThrow(try ReplicaImage(path: disk.path, byteCount: disk.byteCount)) }
        XCTAssertNil(try ReplicaSet.pendingRepair(folder: bench.folder))
        XCTAssertFalse(FileManager.default.fileExists(atPath: bench.folder + "/disk-0.chunks"), "The guest changes what it speaks of")
        close(fd)
    }

    /// Nothing was committed yet: there is no state to start from, and the replicas stay what they are.
    func testActivationWithoutAnEpoch() throws {
        let bench = try DiskBench(Self.sizes, seed: 115)
        let rig = try Rig(seed: 115, disks: bench)
        try rig.copyDisks()
        rig.shadow.parent?.send(.activate, path: "/nowhere")
        XCTAssertEqual(rig.shadow.parent?.event(.activationFailed)?.reason, "No epoch has been committed yet")
    }

    /// A mirror goes between two epochs: the next one would lack writes, and is none.
    func testMirrorEnds() throws {
        let rig = try rig(116)
        let last = rig.qemu.epoch
        try rig.bench.write(10)
        rig.bench.clients[1].hangUp()
        rig.eventually("noticed") { rig.worker.disks?.failure != nil }
        _ = try? rig.qemu.runEpoch(pages: 5, ms: 3000)
        let ended = rig.parent.event(.streamEnded)
        XCTAssertEqual(ended?.epoch, last)
        XCTAssertTrue(ended?.reason?.hasPrefix("QEMU ended the mirror of vd1") == true, ended?.reason ?? "")
        XCTAssertEqual(rig.parent.event(.drained)?.epoch, last)
        XCTAssertEqual(try rig.shadow.digest().epoch, last)
        try rig.bench.assertReplicas(last)
    }

    /// Held for an epoch that lacks writes the guest would stand still for nothing.
    func testMirrorEndsWhileTheGuestIsToBeHeld() throws {
        let rig = try rig(120)
        let last = rig.qemu.epoch
        rig.eventually("committed") { rig.worker.followers[0].backlog.counts.unsent == 0 }
        rig.bench.clients[0].hangUp()
        rig.eventually("noticed") { rig.worker.disks?.failure != nil }
        rig.parent.send(.hold)
        usleep(20_000)
        XCTAssertTrue(try rig.qemu.request(ms: 3000))
        try rig.qemu.write(rig.qemu.capture(20))
        XCTAssertTrue(try rig.qemu.awaitLoaded(ms: 2000), "The guest runs on")
        let reason = rig.parent.event(.holdFailed)?.reason ?? ""
        XCTAssertTrue(reason.hasPrefix("QEMU ended the mirror of vd0"), reason)
        XCTAssertEqual(rig.parent.event(.streamEnded)?.epoch, last)
        XCTAssertEqual(rig.parent.count(.held), 0)
        try rig.bench.assertReplicas(last)
    }

    /// The network stands still, and the guest writes on: it is not held up, and the epoch that lacks writes is none.
    func testOverflow() throws {
        let rig = try rig(117, ceilingBytes: 8 << 20, peerTimeoutMs: 20_000)
        let last = rig.qemu.epoch
        rig.proxy.faults.change { $0.stalled = true }
        var worst = 0.0
        var refused = false
        for index in 0..<64 where !refused {
            let start = MonotonicTime.now
            try rig.bench.clients[0].request(.write, index % 2 << 19, 512 << 10, [UInt8](repeating: 3, count: 512 << 10))
            refused = try rig.bench.clients[0].collect() != 0
            worst = max(worst, MonotonicTime.now.milliseconds(since: start))
        }
        XCTAssertTrue(refused)
        XCTAssertLessThan(worst, 2000, "A write does not wait for the network")
        _ = try? rig.qemu.runEpoch(pages: 5, ms: 3000)
        XCTAssertEqual(rig.parent.event(.streamEnded)?.epoch, last)
        rig.proxy.faults.change { $0.stalled = false }
        XCTAssertEqual(rig.parent.event(.drained)?.epoch, last)
        try rig.bench.assertReplicas(last)
    }

    /// A write of the copy waits for room when the order to stop comes: the worker ends all the same.
    func testStopWhileAWriteWaitsForRoom() throws {
        let bench = try DiskBench([32 << 20], seed: 118)
        let rig = try Rig(seed: 118, ceilingBytes: 8 << 20, peerTimeoutMs: 20_000, disks: bench)
        XCTAssertNotNil(rig.parent.event(.disksPrepared))
        try bench.connect()
        rig.proxy.faults.change { $0.stalled = true }
        let client = bench.clients[0]
        let mirror = Running<Bool> {
            for index in 0..<31 where (try? client.request(.write, index << 20, 1 << 20, [UInt8](repeating: 9, count: 1 << 20))) == nil { return true }
            return true
        }
        rig.eventually("full") { (rig.worker.disks?.pool.bytesInUse ?? 0) >= 8 << 20 }
        usleep(100_000)
        let start = MonotonicTime.now
        rig.parent.send(.stop)
        XCTAssertEqual(rig.run.result(), 0)
        XCTAssertLessThan(MonotonicTime.now.milliseconds(since: start), 4000)
        client.hangUp()
        XCTAssertEqual(mirror.result(), true)
        rig.proxy.faults.change { $0.stalled = false }
    }

    /// Epochs pile up behind the flush of the first copy, and are not sent into a connection that nobody reads.
    func testNothingIsSentBeforeTheFirstCommit() throws {
        let bench = try DiskBench(Self.sizes, seed: 119)
        let rig = try Rig(seed: 119, peerTimeoutMs: 20_000, disks: bench)
        try rig.copyDisks()
        rig.eventually("copied") { rig.worker.followers[0].backlog.counts.unsent == 0 }
        rig.proxy.faults.change { $0.stalled = true }
        try rig.diskEpochs(5)
        usleep(300_000)
        XCTAssertEqual(rig.worker.followers[0].backlog.counts.lastTaken, 1)
        rig.proxy.faults.change { $0.stalled = false }
        try rig.assertAllInStep()
    }
}
