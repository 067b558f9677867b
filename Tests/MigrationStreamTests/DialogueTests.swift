import Foundation
import Glibc
import MigrationStream
import Platform
import XCTest

final class DialogueTests: XCTestCase {
    /// A dialogue that has sent READY, and the RAM it has so far.
    private struct Started {
        let pair = SocketPair()
        let pool = ChunkPool(chunkBytes: 64 << 10, limitBytes: 1 << 20)
        let reader: StreamReader
        let dialogue: COLODialogue
        var ram = SparseRAM()

        init(wakeFD: Int32? = nil) throws {
            reader = StreamReader(fd: pair.ours, wakeFD: wakeFD, pool: pool)
            dialogue = COLODialogue(reader: reader)
            pair.feed(Fixture.firstPass + Fixture.tail)
            _ = try dialogue.firstPass(into: &ram)
            XCTAssertTrue(try dialogue.drainFirstDeviceState())
            try dialogue.sendReady()
            XCTAssertEqual(pair.message(), 0)
            giveChunks()
        }

        func giveChunks() {
            for chunk in reader.takeChunks() { pool.give(chunk) }
        }

        /// Feeds `bytes`, ends the stream there, and runs one epoch.
        mutating func epoch(_ bytes: [UInt8], early: Bool = false) -> Outcome {
            pair.feed(bytes)
            pair.endOfStream()
            var outcome = Outcome()
            do throws(StreamError) {
                try dialogue.awaitRequest()
                try dialogue.reply()
                let state = try dialogue.receiveEpoch(into: &ram, acknowledgeEarly: early)
                outcome.device = Array(state.bytes)
            } catch {
                outcome.error = error
            }
            outcome.ram = ram
            return outcome
        }
    }

    func testEpochThatIsHeld() throws {
        var started = try Started()
        let outcome = started.epoch(Fixture.request + Fixture.epochBody)
        XCTAssertNil(outcome.error)
        XCTAssertEqual(outcome.ram, Fixture.secondRAM)
        XCTAssertEqual(outcome.device, Fixture.deviceState)
        XCTAssertEqual(started.pair.message(), 2)
        XCTAssertEqual(started.dialogue.stateName, "held")
        var waiting: Int32 = 0
        _ = ioctl(started.pair.theirs, UInt(FIONREAD), &waiting)
        XCTAssertEqual(waiting, 0, "acknowledged although it was to be held")
        try started.dialogue.acknowledge()
        XCTAssertEqual(started.pair.message(), 5)
        XCTAssertEqual(started.pair.message(), 6)
        XCTAssertEqual(started.dialogue.stateName, "idle")
    }

    func testAcknowledgedBeforeTheDeviceStateCame() throws {
        var started = try Started()
        let pair = started.pair
        let qemu = withThread {
            pair.feed(Fixture.request)
            guard pair.message() == 2 else { return }
            // A stand-in that insists: no byte of the device state before the acknowledgement.
            pair.feed(Array(Fixture.epochBody.dropLast(Fixture.deviceState.count)), atATime: 1)
            guard pair.message() == 5, pair.message() == 6 else { return }
            pair.feed(Fixture.deviceState, atATime: 1)
        }
        started.reader.deadline = MonotonicTime.now.adding(milliseconds: 20_000)
        try started.dialogue.awaitRequest()
        try started.dialogue.reply()
        var stopped = false
        let state = try started.dialogue.receiveEpoch(into: &started.ram, acknowledgeEarly: true) { stopped = true }
        qemu.wait()
        XCTAssertTrue(stopped)
        XCTAssertEqual(started.ram, Fixture.secondRAM)
        XCTAssertEqual(Array(state.bytes), Fixture.deviceState)
        XCTAssertEqual([state.pages, state.fills], [1, 1])
        XCTAssertEqual(started.dialogue.stateName, "idle")
    }

    func testEpochCutAtEveryByte() throws {
        let bytes = Fixture.request + Fixture.epochBody
        for length in 0..<bytes.count {
            var started = try Started()
            let outcome = started.epoch(Array(bytes.prefix(length)), early: length % 2 == 0)
            XCTAssertEqual(outcome.error?.kind, .endOfStream, "cut at \(length)")
            XCTAssertEqual(started.dialogue.stateName, "broken")
        }
    }

    func testSeededMutationsNeverTrap() throws {
        var generator = SeededGenerator(seed: 11)
        var rejected = 0
        for _ in 0..<2000 {
            var bytes = Fixture.request + Fixture.epochBody
            for _ in 0..<Int.random(in: 1...3, using: &generator) { mutate(&bytes, &generator) }
            var started = try Started()
            if started.epoch(bytes).error != nil { rejected += 1 }
        }
        XCTAssertGreaterThan(rejected, 200)
    }

    func testWrongMessages() throws {
        let send = bigEndian(UInt32(3))
        let start = Fixture.request + send
        try assertBroken(by: send, .unexpectedMessage(got: 3, expected: .checkpointRequest))
        try assertBroken(by: Fixture.request + bigEndian(UInt32(4)), .unexpectedMessage(got: 4, expected: .vmstateSend))
        try assertBroken(by: Fixture.request + bigEndian(UInt32(99)), .unexpectedMessage(got: 99, expected: .vmstateSend))
        try assertBroken(by: start + [0x04], .unknownSection(4))
        try assertBroken(by: start + [0x00], .unknownSection(0))
        try assertBroken(by: start + [0x01], .unknownSection(1))
        try assertBroken(by: start + [3, 0, 0, 0, 9], .unknownSectionID(9))
    }

    private func assertBroken(by bytes: [UInt8], _ expected: StreamError.Kind, line: UInt = #line) throws {
        var started = try Started()
        XCTAssertEqual(started.epoch(bytes).error?.kind, expected, line: line)
        XCTAssertEqual(started.dialogue.stateName, "broken", line: line)
    }

    func testOversizeDeviceState() throws {
        let empty = bytes(hex: "00000003 03 00000002 0000000000000010 7e 00000002 00 00000004")
        var started = try Started()
        XCTAssertEqual(started.epoch(Fixture.request + empty + bigEndian(UInt64.max)).error?.kind,
                       .tooLong(what: "Device state", length: .max, limit: 256 << 20))
        // Allowed by the format, but not by this pool.
        started = try Started()
        XCTAssertEqual(started.epoch(Fixture.request + empty + bigEndian(UInt64(2 << 20))).error?.kind,
                       .ceiling(limitBytes: 1 << 20))
        // Larger than a chunk: gets one of its own.
        let device = (0..<300_000).map { UInt8(truncatingIfNeeded: $0 &* 7) }
        started = try Started()
        let outcome = started.epoch(Fixture.request + empty + bigEndian(UInt64(device.count)) + device)
        XCTAssertNil(outcome.error)
        XCTAssertEqual(outcome.device, device)
        started.giveChunks()
        XCTAssertLessThanOrEqual(started.pool.bytesInUse, 64 << 10)
    }

    func testWrongOrder() throws {
        let pair = SocketPair()
        let fresh = COLODialogue(reader: StreamReader(fd: pair.ours, pool: ChunkPool(limitBytes: 1 << 20)))
        var ram = SparseRAM()
        for call in ["sendReady", "awaitRequest", "reply", "acknowledge", "drainFirstDeviceState", "receiveEpoch"] {
            let attempt: () throws -> Void = {
                switch call {
                case "sendReady": try fresh.sendReady()
                case "awaitRequest": try fresh.awaitRequest()
                case "reply": try fresh.reply()
                case "acknowledge": try fresh.acknowledge()
                case "drainFirstDeviceState": _ = try fresh.drainFirstDeviceState()
                default: _ = try fresh.receiveEpoch(into: &ram, acknowledgeEarly: false)
                }
            }
            XCTAssertThrowsError(try attempt()) { error in
                XCTAssertEqual((error as? StreamError)?.kind, .outOfOrder(call: call, state: "opening"))
            }
        }
        XCTAssertEqual(fresh.stateName, "opening")
        let started = try Started()
        XCTAssertThrowsError(try started.dialogue.reply())
        XCTAssertThrowsError(try started.dialogue.sendReady())
        XCTAssertThrowsError(try started.dialogue.firstPass(into: &ram))
        XCTAssertEqual(started.dialogue.stateName, "idle")
    }

    func testTheTailIsCompleteAtItsLastByteOnly() throws {
        for description in [Fixture.description, Fixture.newerDescription] {
            let pair = SocketPair()
            let dialogue = COLODialogue(reader: StreamReader(fd: pair.ours, pool: ChunkPool(limitBytes: 1 << 20)))
            var ram = SparseRAM()
            pair.feed(Fixture.firstPass)
            _ = try dialogue.firstPass(into: &ram)
            // A device may well send bytes that look like a description.
            let bait = fields(("06 0000 0001 7b", "bait"), ("7b7b7b7b", "more bait"))
            let tail = bait + Fixture.deviceState + description
            for (index, byte) in tail.enumerated() {
                pair.feed([byte])
                XCTAssertEqual(try dialogue.drainFirstDeviceState(), index == tail.count - 1)
            }
            pair.feed(Array(repeating: 1, count: 100))
            XCTAssertThrowsError(try dialogue.drainFirstDeviceState(limit: 50)) { error in
                guard case .tooLong = (error as? StreamError)?.kind else { return XCTFail("\(error)") }
            }
        }
    }

    func testInterruptedAndTimedOutWaitsCanBeRepeated() throws {
        var ends: [Int32] = [-1, -1]
        pipe(&ends)
        defer { ends.forEach { close($0) } }
        let started = try Started(wakeFD: ends[0])
        started.reader.deadline = MonotonicTime.now.adding(milliseconds: 5)
        XCTAssertThrowsError(try started.dialogue.awaitRequest()) { error in
            XCTAssertEqual((error as? StreamError)?.kind, .timedOut)
        }
        started.reader.deadline = nil
        let writer = ends[1]
        let waker = withThread {
            usleep(20_000)
            write(writer, "x", 1)
        }
        started.pair.feed([0, 0])  // half a message
        XCTAssertThrowsError(try started.dialogue.awaitRequest()) { error in
            XCTAssertEqual((error as? StreamError)?.kind, .interrupted)
        }
        waker.wait()
        var byte: UInt8 = 0
        read(ends[0], &byte, 1)
        started.pair.feed([0, 1])
        try started.dialogue.awaitRequest()
        XCTAssertEqual(started.dialogue.stateName, "requested")
    }

    /// QEMU dies: its socket is gone while we answer. No SIGPIPE, an error.
    func testPeerIsGone() throws {
        let started = try Started()
        started.pair.feed(Fixture.request)
        try started.dialogue.awaitRequest()
        started.pair.closeTheirs()
        XCTAssertThrowsError(try started.dialogue.reply()) { error in
            XCTAssertEqual((error as? StreamError)?.kind, .system(call: "send", code: EPIPE))
        }
    }

    func testManySmallEpochsShareChunks() throws {
        var started = try Started()
        var held: [Chunk] = []
        for _ in 0..<40 {
            started.pair.feed(Fixture.request + Fixture.epochBody)
            try started.dialogue.awaitRequest()
            try started.dialogue.reply()
            let state = try started.dialogue.receiveEpoch(into: &started.ram, acknowledgeEarly: true)
            XCTAssertEqual(Array(state.bytes), Fixture.deviceState)
            held += started.reader.takeChunks()
        }
        // 40 epochs of 4.2 KB: 168 KB lie in three or four chunks of 64 KiB, the pool knows each once.
        XCTAssertLessThanOrEqual(started.pool.bytesInUse, 5 * 64 << 10)
        held.forEach(started.pool.give)
        XCTAssertLessThanOrEqual(started.pool.bytesInUse, 64 << 10)
    }
}
