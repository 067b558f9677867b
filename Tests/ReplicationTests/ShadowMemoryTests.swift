import CLinux
import Foundation
import MigrationStream
import Platform
import XCTest
@testable import Replication

final class ShadowMemoryTests: XCTestCase {
    private static let pages = 64
    private static let block = SharedBlock(name: "pc.ram", byteCount: UInt64(pages) * 4096)
    private let header = StreamHeader(configuration: [1, 2, 3], machine: "pc", sectionID: 2, blocks: [
        RAMBlock(name: "vga", length: 8 * 4096, index: 0), RAMBlock(name: "pc.ram", length: UInt64(pages) * 4096, index: 1),
    ])
    private var ram: Int32 = -1
    private var journal: Int32 = -1
    private var state: Int32 = -1

    override func setUpWithError() throws {
        ram = try memoryFile("test-ram", bytes: Self.pages * 4096).release()
        (journal, state) = try ShadowMemory.makeFiles()
    }

    override func tearDown() {
        for fd in [ram, journal, state] { close(fd) }
    }

    private func open() throws -> ShadowMemory { try ShadowMemory([.init(Self.block, fd: ram)], journalFD: journal, stateFD: state) }

    private func content(_ memory: ShadowMemory) -> [UInt8] {
        [(0, 8), (1, Self.pages)].flatMap { block, count in
            memory.page(PageLocation(block: block, offset: 0)).map { Array(UnsafeRawBufferPointer(start: $0, count: count * 4096)) } ?? []
        } + Array(memory.deviceState)
    }

    /// Writes an epoch into the journal as it would arrive: pages full of `byte`, a fill, device state. Returns its end.
    private func write(_ memory: ShadowMemory, epoch number: UInt64, byte: UInt8, pages: Int) throws -> Int {
        let page = UnsafeMutableRawPointer.allocate(byteCount: 4096, alignment: 16)
        defer { page.deallocate() }
        memset(page, Int32(byte), 4096)
        let epoch = CapturedEpoch(number: number, pool: ChunkPool(limitBytes: 1 << 20))
        for index in 0..<pages { epoch.append(PageLocation(block: index % 5 == 0 ? 0 : 1, offset: UInt64(index % 5 == 0 ? index / 5 % 8 : index) << 12), bytes: page) }
        var fill = PageLocation(block: 1, offset: UInt64(Self.pages - 1) << 12)
        fill.word |= PageLocation.fillBit
        epoch.append(fill, bytes: nil, fill: byte ^ 0xff)
        epoch.setDevice(UnsafeRawBufferPointer(start: page, count: 1000 + Int(number)))
        let pair = try LinkPair(stallMilliseconds: 5000)
        let sending = Running { try? pair.a.sendCommit(epoch, pages: pair.a.send(epoch), base: number - 1) }
        var end = ShadowMemory.journalStart
        while true {
            let frame = try pair.b.receive(to: try memory.journalSlot(at: end), deadline: .now.adding(milliseconds: 5000))
            if frame.type == .commit { break }
            end += PageFrame.headerBytes + Int(frame.length)
        }
        _ = sending.result()
        return end
    }

    private func fresh() throws -> ShadowMemory {
        let memory = try open()
        try memory.introduce(header)
        return memory
    }

    func testIntroduction() throws {
        let view = try MappedMemory.shared(ram, length: Self.pages * 4096, what: "a test")
        memset(view.base, 0x77, view.length)
        let memory = try fresh()
        XCTAssertEqual(Set(content(memory)), [0], "What firmware left in the RAM is gone")
        XCTAssertEqual(memory.committedEpoch, 0)
        let second = try open()
        XCTAssertEqual(second.header, header)
        XCTAssertNoThrow(try second.introduce(header))
        withExtendedLifetime(view) {}
    }

    /// A guest of another layout: with an epoch of this session there it cannot be the same guest, before the first it begins from zeros.
    func testAnotherLayout() throws {
        var other = header
        other.machine = "q35"
        let session = UUID()
        let memory = try fresh()
        memory.begin(session)
        let end = try write(memory, epoch: 1, byte: 0x11, pages: 20)
        memory.complete(1, end: end)
        memory.apply(1, end: end)
        XCTAssertThrowsError(try memory.introduce(other)) {
            XCTAssertEqual("\($0)", "The primary's RAM layout is not the one this session began with")
        }
        let successor = try open()
        successor.begin(session)
        XCTAssertEqual(successor.committedEpoch, 1, "A successor of the same session goes on")
        let held = content(successor)
        successor.begin(UUID())
        XCTAssertEqual(successor.committedEpoch, 0)
        XCTAssertEqual(successor.deviceState.count, 0)
        XCTAssertEqual(content(successor), Array(held.dropLast(held.count - (8 + Self.pages) * 4096)), "The memory stays")
        XCTAssertThrowsError(try successor.withActivationStream { _ in }) { XCTAssertEqual("\($0)", "No epoch has been committed yet") }
        try successor.introduce(other)
        XCTAssertEqual(Set(content(successor)), [0])
        XCTAssertEqual(try open().header, other)
    }

    func testHashesOfWhatIsThere() throws {
        let hash = PageHash(secret: [UInt8](repeating: 3, count: 192))
        let memory = try fresh()
        let before = try allocated(ram)
        let written = [(0, 3), (1, 5), (1, 6), (1, 9), (1, Self.pages - 1)]
        for (block, page) in written { memset(try XCTUnwrap(memory.page(PageLocation(block: block, offset: UInt64(page) << 12))), Int32(page), 4096) }
        // Written to, but zero again.
        memset(try XCTUnwrap(memory.page(PageLocation(block: 1, offset: 20 << 12))), 0, 4096)
        for most in [1, 2, 3, 64] {
            var found: [String: [UInt64]] = [:]
            var cursor = ShadowMemory.Cursor()
            let buffer = UnsafeMutablePointer<UInt64>.allocate(capacity: most * 2)
            defer { buffer.deallocate() }
            while let (first, count) = hash.withHasher({ memory.hashes(from: &cursor, $0, to: buffer, most: most) }) {
                XCTAssertLessThanOrEqual(count, most)
                for index in 0..<count where buffer[index * 2] != 0 || buffer[index * 2 + 1] != 0 { found["\(first.block).\(Int(first.page) + index)"] = [buffer[index * 2], buffer[index * 2 + 1]] }
            }
            XCTAssertEqual(Set(found.keys), Set(written.map { "\($0.0).\($0.1)" }), "\(most) at a time")
            for (block, page) in written {
                let bytes = [UInt8](repeating: UInt8(page), count: 4096)
                let (low, high) = hash.withHasher { $0.hash128(bytes, 4096) }
                XCTAssertEqual(found["\(block).\(page)"], [low, high])
            }
        }
        XCTAssertLessThanOrEqual(try allocated(ram) - before, 8 * 8, "Looking at holes fills none of them")
        XCTAssertNil(hash.withHasher { hasher -> (first: PageLocation, count: Int)? in
            var cursor = ShadowMemory.Cursor()
            let buffer = UnsafeMutablePointer<UInt64>.allocate(capacity: 2)
            defer { buffer.deallocate() }
            return (try? open()).flatMap { other in
                while other.hashes(from: &cursor, hasher, to: buffer, most: 1) != nil {}
                return other.hashes(from: &cursor, hasher, to: buffer, most: 1)
            }
        }, "It stays at its end")
    }

    func testLayoutsThatCannotBe() throws {
        func refused(_ change: (inout StreamHeader) -> Void) throws -> String {
            var changed = header
            change(&changed)
            let memory = try open()
            do { try memory.introduce(changed) } catch {
                XCTAssertNil(memory.header, "A refused layout must not count as known")
                return "\(error)"
            }
            return "accepted"
        }
        XCTAssertEqual(try refused { $0.blocks.removeLast() }, "The primary has no RAM block pc.ram, only vga")
        XCTAssertEqual(try refused { $0.blocks[1] = RAMBlock(name: "pc.ram", length: 4096, index: 1) },
                       "The primary's pc.ram has 4096 bytes, the shadow's 262144")
        XCTAssertEqual(try refused { $0.blocks[0] = RAMBlock(name: "vga", length: 2 << 30, index: 0) },
                       "RAM block vga of 2147483648 bytes is too large to be kept beside the RAM")
        XCTAssertEqual(try refused { $0.blocks[0] = RAMBlock(name: "vga", length: UInt64.max & ~4095, index: 0) },
                       "RAM block vga of 18446744073709547520 bytes is too large to be kept beside the RAM")
        // Two blocks that both claim to be the RAM would both be mapped onto it.
        XCTAssertEqual(try refused { $0.blocks[0] = RAMBlock(name: "vga", length: 1 << 20, index: 1) },
                       "RAM block vga has the number 1 at place 0 and 1048576 bytes")
        XCTAssertEqual(try refused { $0.blocks[0] = RAMBlock(name: "vga", length: 4097, index: 0) },
                       "RAM block vga has the number 0 at place 0 and 4097 bytes")
    }

    /// A guest with NUMA cells has several: each page goes to its own file, and a successor goes on with all of them.
    func testSeveralSharedBlocks() throws {
        let files = try (0..<3).map { try memoryFile("test-node\($0)", bytes: Self.pages * 4096).release() }
        defer { files.forEach { close($0) } }
        let header = StreamHeader(configuration: nil, machine: "q35", sectionID: 2, blocks: (0..<3).map { RAMBlock(name: "ram-node\($0)", length: UInt64(Self.pages) * 4096, index: $0) }
            + [RAMBlock(name: "vga", length: 8 * 4096, index: 3)])
        // The last is what was set aside at its start, and not in the stream's order.
        func shared(_ order: [Int]) -> [ShadowMemory.SharedFile] {
            order.map { .init(SharedBlock(name: "ram-node\($0)", byteCount: UInt64(Self.pages) * 4096, isPreallocated: $0 == 2), fd: files[$0]) }
        }
        let views = try files.map { try MappedMemory.shared($0, length: Self.pages * 4096, what: "a test") }
        for view in views { memset(view.base, 0x77, view.length) }
        let before = try files.map { try allocated($0) }
        let memory = try ShadowMemory(shared([2, 0, 1]), journalFD: journal, stateFD: state)
        try memory.introduce(header)
        for view in views { XCTAssertTrue((0..<view.length).allSatisfy { view.base.load(fromByteOffset: $0, as: UInt8.self) == 0 }) }
        XCTAssertEqual(try allocated(files[2]), before[2], "What was set aside stays")
        for index in 0..<3 { memset(try XCTUnwrap(memory.page(PageLocation(block: index, offset: UInt64(index) << 12))), Int32(index) + 1, 4096) }
        for index in 0..<3 { XCTAssertEqual(views[index].base.load(fromByteOffset: index * 4096 + 17, as: UInt8.self), UInt8(index) + 1) }
        let successor = try ShadowMemory(shared([2, 0, 1]), journalFD: journal, stateFD: state)
        XCTAssertEqual(successor.header, header)
        XCTAssertEqual(try XCTUnwrap(successor.page(PageLocation(block: 2, offset: 2 << 12))).load(as: UInt8.self), 3)
        XCTAssertThrowsError(try ShadowMemory(Array(shared([0, 1]) + [.init(Self.block, fd: ram)]), journalFD: journal, stateFD: state)) {
            XCTAssertEqual("\($0)", "The primary has no RAM block pc.ram, only ram-node0, ram-node1, ram-node2, vga")
        }
        withExtendedLifetime(views) {}
    }

    private func allocated(_ fd: Int32) throws -> Int {
        var info = stat()
        guard fstat(fd, &info) == 0 else { throw SystemError("fstat", "a test's file") }
        return Int(info.st_blocks)
    }

    /// What the waiting QEMU could not load is refused when it begins, not when it is needed.
    func testWaitingBlocksThatDoNotFit() throws {
        func refused(_ waiting: [WaitingBlock]) throws -> String {
            let memory = try open()
            do { try memory.introduce(header, waiting: waiting) } catch { return "\(error)" }
            return "accepted"
        }
        let ram = WaitingBlock(name: "pc.ram", byteCount: UInt64(Self.pages) * 4096, mostBytes: UInt64(Self.pages) * 4096)
        XCTAssertEqual(try refused([ram]), "The shadow's QEMU has no RAM block vga, which the primary's has: a device or the firmware differs")
        XCTAssertEqual(try refused([ram, WaitingBlock(name: "vga", byteCount: 4096, mostBytes: 4096)]), "RAM block vga has 32768 bytes in the primary's QEMU and 4096 in the shadow's: "
            + "another release of QEMU's ROM files or of the firmware is installed there")
        XCTAssertEqual(try refused([ram, WaitingBlock(name: "vga", byteCount: 4096, mostBytes: 32768)]), "accepted")
    }

    func testPagesOutside() throws {
        let memory = try fresh()
        XCTAssertNotNil(memory.page(PageLocation(block: 1, offset: 63 << 12)))
        XCTAssertNil(memory.page(PageLocation(block: 1, offset: 64 << 12)))
        XCTAssertNil(memory.page(PageLocation(block: 2, offset: 0)))
        XCTAssertNil(memory.page(PageLocation(block: 0, offset: 8 << 12)))
        XCTAssertNil(memory.page(PageLocation(word: 1 << 59)))
        XCTAssertNil(memory.page(PageLocation(word: PageLocation.highestPage)))
    }

    /// What is in the journal counts from `complete` on, and not before.
    func testCrashBeforeAndAfterComplete() throws {
        var memory = try fresh()
        memory.apply(1, end: try write(memory, epoch: 1, byte: 1, pages: 40))
        let first = content(memory)
        XCTAssertEqual(memory.committedEpoch, 1)
        XCTAssertEqual(memory.deviceState.count, 1001)

        let end = try write(memory, epoch: 2, byte: 2, pages: 30)
        memory = try open()
        XCTAssertNil(memory.completeEpoch)
        XCTAssertEqual(content(memory), first, "Nothing is overwritten before the epoch is complete")

        memory.complete(2, end: end)
        memory = try open()
        XCTAssertEqual(memory.completeEpoch?.epoch, 2)
        XCTAssertEqual(memory.committedEpoch, 1)
        let (epoch, again) = try XCTUnwrap(memory.completeEpoch)
        memory.apply(epoch, end: again)
        XCTAssertEqual(memory.committedEpoch, 2)
        XCTAssertEqual(memory.deviceState.count, 1002)
        XCTAssertEqual(Set(memory.deviceState), [2])
        XCTAssertNil(memory.completeEpoch)

        // The same on a shadow that never crashed.
        let twin = try ShadowMemoryTests.twin(header, [(1, 1, 40), (2, 2, 30)]) { try write($0, epoch: $1, byte: $2, pages: $3) }
        XCTAssertEqual(content(memory), twin)
    }

    private static func twin(_ header: StreamHeader, _ epochs: [(UInt64, UInt8, Int)],
                             _ write: (ShadowMemory, UInt64, UInt8, Int) throws -> Int) throws -> [UInt8] {
        let ram = try memoryFile("twin", bytes: pages * 4096)
        let (journal, state) = try ShadowMemory.makeFiles()
        defer {
            close(journal)
            close(state)
        }
        let memory = try ShadowMemory([.init(block, fd: ram.raw)], journalFD: journal, stateFD: state)
        try memory.introduce(header)
        for (number, byte, count) in epochs { memory.apply(number, end: try write(memory, number, byte, count)) }
        return [(0, 8), (1, pages)].flatMap { block, count in
            memory.page(PageLocation(block: block, offset: 0)).map { Array(UnsafeRawBufferPointer(start: $0, count: count * 4096)) } ?? []
        } + Array(memory.deviceState)
    }

    /// Two slots in turn: the device state that counts is not touched while the next one is copied.
    func testDeviceStateSlots() throws {
        let memory = try fresh()
        memory.apply(1, end: try write(memory, epoch: 1, byte: 1, pages: 1))
        let first = memory.deviceState.baseAddress
        let end = try write(memory, epoch: 2, byte: 2, pages: 1)
        memory.apply(2, end: end)
        let second = memory.deviceState.baseAddress
        XCTAssertNotEqual(first, second)
        // Applied once more, after a crash between its last two steps: the same slot.
        memory.complete(2, end: end)
        memory.apply(2, end: end)
        XCTAssertEqual(memory.deviceState.baseAddress, second)
        XCTAssertEqual(Array(UnsafeRawBufferPointer(start: first, count: 1001)), [UInt8](repeating: 1, count: 1001))
        memory.apply(3, end: try write(memory, epoch: 3, byte: 3, pages: 1))
        XCTAssertEqual(memory.deviceState.baseAddress, first)
    }

    /// A crash anywhere inside apply: some pages are copied, and each of the closing words may or may not be written.
    func testCrashInsideApply() throws {
        let twin = try ShadowMemoryTests.twin(header, [(1, 1, 40), (2, 2, 30), (3, 3, 50)]) { try write($0, epoch: $1, byte: $2, pages: $3) }
        for copied in [0, 1, 13, 30] {
            for words in 0...3 {
                close(ram)
                close(journal)
                close(state)
                try setUpWithError()
                var memory = try fresh()
                memory.apply(1, end: try write(memory, epoch: 1, byte: 1, pages: 40))
                let before = Array(memory.deviceState)
                let end = try write(memory, epoch: 2, byte: 2, pages: 30)
                memory.complete(2, end: end)
                // By hand what apply does, as far as it came.
                for index in 0..<copied {
                    let location = PageLocation(block: index % 5 == 0 ? 0 : 1, offset: UInt64(index % 5 == 0 ? index / 5 % 8 : index) << 12)
                    memset(try XCTUnwrap(memory.page(location)), 2, index == copied - 1 ? 1000 : 4096)
                }
                let raw = try MappedMemory.shared(state, length: 8192, what: "a test")
                let slot = raw.base.load(fromByteOffset: 16, as: UInt64.self) ^ 1
                if words >= 1, copied == 30 { raw.base.storeBytes(of: 1002, toByteOffset: 24 + Int(slot) * 8, as: UInt64.self) }
                if words < 2 { XCTAssertEqual(Array(memory.deviceState), before, "The device state in use is never written over") }
                if words >= 2, copied == 30 { raw.base.storeBytes(of: slot, toByteOffset: 16, as: UInt64.self) }
                if words >= 3, copied == 30 { raw.base.storeBytes(of: 2, toByteOffset: 8, as: UInt64.self) }
                withExtendedLifetime(raw) {}
                memory = try open()
                let (epoch, again) = try XCTUnwrap(memory.completeEpoch)
                memory.apply(epoch, end: again)
                XCTAssertEqual(memory.committedEpoch, 2)
                memory.apply(3, end: try write(memory, epoch: 3, byte: 3, pages: 50))
                XCTAssertEqual(content(memory), twin, "\(copied) pages, \(words) words")
            }
        }
    }

    func testJournalGrowsAndShrinks() throws {
        let memory = try fresh()
        func allocated() -> Int {
            var info = stat()
            fstat(journal, &info)
            return Int(info.st_blocks) * 512
        }
        let end = try write(memory, epoch: 1, byte: 1, pages: 20_000)
        XCTAssertGreaterThan(end, 75 << 20)
        XCTAssertGreaterThan(allocated(), 75 << 20)
        memory.complete(1, end: end)
        memory.apply(1, end: end)
        XCTAssertLessThan(allocated(), 20 << 20, "A large epoch's memory is given back")
        memory.apply(2, end: try write(memory, epoch: 2, byte: 2, pages: 10))
        XCTAssertEqual(memory.committedEpoch, 2)
        XCTAssertThrowsError(try memory.journalSlot(at: 5 << 30)) { XCTAssertEqual("\($0)", "An epoch is larger than the guest's whole memory and 4 GiB of disk writes") }
    }

    func testWrongMemoryFile() {
        XCTAssertThrowsError(try ShadowMemory([.init(SharedBlock(name: "pc.ram", byteCount: 4096), fd: ram)], journalFD: journal, stateFD: state)) {
            XCTAssertEqual("\($0)", "The shadow's memory file of pc.ram has 262144 bytes, its block 4096")
        }
    }

    /// Video memory that the guest never used is neither sent nor made real by looking at it.
    func testUnusedVideoMemoryCostsNothing() throws {
        let video = StreamHeader(configuration: nil, machine: "pc", sectionID: 2, blocks: [
            RAMBlock(name: "0000:00:02.0/vga.vram", length: 64 << 20, index: 0), RAMBlock(name: "pc.ram", length: UInt64(Self.pages) * 4096, index: 1),
            RAMBlock(name: "0000:00:02.0/qxl.vram", length: 64 << 20, index: 2),
        ])
        let memory = try open()
        try memory.introduce(video)
        memory.apply(1, end: try write(memory, epoch: 1, byte: 1, pages: 20))
        memset(try XCTUnwrap(memory.page(PageLocation(block: 2, offset: 1000 << 12))), 0x55, 4096)
        memset(try XCTUnwrap(memory.page(PageLocation(block: 2, offset: (64 << 20) - 4096))), 0x56, 4096)
        // A device state ends with a zero byte; the one that `write` made is of ones.
        memset(UnsafeMutableRawPointer(mutating: try XCTUnwrap(memory.deviceState.baseAddress)) + memory.deviceState.count - 1, 0, 1)
        let before = try allocated(state)
        let bytes = try memory.withActivationStream { $0.bytes() }
        XCTAssertEqual(try allocated(state), before)
        // Pages 0, 5, 10 and 15 of the four went to the first block, two are in the last.
        XCTAssertEqual((bytes.count - 1001) / 4096, 6)
        for byte in [UInt8(0x55), 0x56] { XCTAssertEqual(bytes.split(whereSeparator: { $0 != byte }).map(\.count).max(), 4096) }
    }

    func testActivationNeedsAnEpoch() throws {
        let memory = try fresh()
        XCTAssertThrowsError(try memory.withActivationStream { $0.totalBytes }) { XCTAssertEqual("\($0)", "No epoch has been committed yet") }
    }
}

final class ActivationTests: XCTestCase {
    func testActivationSealsTheShadow() throws {
        let rig = try Rig(seed: 60)
        try rig.epochs(4)
        try rig.assertInStep()
        let path = NSTemporaryDirectory() + "sv-activate-\(getpid()).sock"
        defer { unlink(path) }
        let listener = try UnixSocket.listen(path, mode: 0o600)
        rig.shadow.parent?.send(.activate, path: path)
        guard let qemu = try acceptConnection(listener.raw, until: .now.adding(milliseconds: 3000)) else { return XCTFail("Nobody connected") }
        var stream: [UInt8] = []
        while let byte = try? readFully(qemu.raw, count: 1, deadline: .now.adding(milliseconds: 3000), during: "a test") { stream += byte }
        XCTAssertEqual(rig.shadow.parent?.event(.activated)?.epoch, 4)
        XCTAssertEqual(Array(stream.prefix(8)), [0x51, 0x45, 0x56, 0x4d, 0, 0, 0, 3])
        XCTAssertEqual(Array(stream.suffix(rig.qemu.device.count + 5)), rig.qemu.device + [6, 0, 0, 0, 0])
        let held = try rig.shadow.digest()
        // The source, if it still lives, has no say any more.
        try rig.epochs(3)
        usleep(300_000)
        XCTAssertEqual(try rig.shadow.digest().epoch, 4)
        XCTAssertEqual(try rig.shadow.digest().digest, held.digest)
    }

    func testActivationOfNothing() throws {
        let rig = try Rig(seed: 61, firstCopy: false)
        rig.shadow.parent?.send(.activate, path: "/nonexistent")
        XCTAssertEqual(rig.shadow.parent?.event(.activationFailed)?.reason, "No epoch has been committed yet")
    }
}

final class WorkerChannelTests: XCTestCase {
    private func pair() throws -> (WorkerChannel, WorkerChannel) {
        let pair = try UnixSocket.messagePair()
        return (WorkerChannel(try pair.ours.duplicate()), WorkerChannel(try pair.theirs.duplicate()))
    }

    private func openDescriptors() throws -> Int { try FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd").count }

    func testMessagesAndDescriptors() throws {
        let (a, b) = try pair()
        let file = try memoryFile("carried", bytes: 123)
        try a.send(WorkerCommand(.setInterval, intervalMs: 2.5))
        try a.send(WorkerCommand(.connection), descriptor: file.raw)
        let (first, none) = try XCTUnwrap(try b.receive(WorkerCommand.self, until: .now.adding(milliseconds: 1000)))
        XCTAssertEqual(first.intervalMs, 2.5)
        XCTAssertEqual(none, -1)
        let (second, fd) = try XCTUnwrap(try b.receive(WorkerCommand.self, until: .now.adding(milliseconds: 1000)))
        XCTAssertEqual(second.verb, .connection)
        var info = stat()
        XCTAssertEqual(fstat(fd, &info), 0)
        XCTAssertEqual(info.st_size, 123)
        XCTAssertEqual(fcntl(fd, F_GETFD), FD_CLOEXEC)
        close(fd)
        XCTAssertThrowsError(try b.receive(WorkerCommand.self, until: .now.adding(milliseconds: 20)))
        shutdown(a.raw, Int32(SHUT_RDWR))
        XCTAssertNil(try b.receive(WorkerCommand.self))
        XCTAssertThrowsError(try b.send(WorkerEvent(.ready)))
    }

    func testBadMessagesLeaveNothingOpen() throws {
        let (a, b) = try pair()
        let file = try memoryFile("carried", bytes: 1)
        let before = try openDescriptors()
        try a.send(["verb": "no such verb"], descriptor: file.raw)
        XCTAssertThrowsError(try b.receive(WorkerCommand.self, until: .now.adding(milliseconds: 1000)))
        let large = [UInt8](repeating: 0x20, count: (64 << 10) + 1)
        XCTAssertEqual(clinux_send_with_fd(a.raw, large, large.count, file.raw, 0), large.count)
        XCTAssertThrowsError(try b.receive(WorkerCommand.self, until: .now.adding(milliseconds: 1000))) { XCTAssertTrue("\($0)".hasPrefix("A worker message"), "\($0)") }
        XCTAssertEqual(try openDescriptors(), before)
        XCTAssertThrowsError(try a.send(String(repeating: "x", count: 70_000)))
    }
}
