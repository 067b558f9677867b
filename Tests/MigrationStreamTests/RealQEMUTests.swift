import Foundation
import Glibc
import MigrationStream
import Platform
import XCTest

/// All RAM blocks as plain memory.
private final class Image: PageSink {
    var list: [RAMBlock] = []
    var memory: [UnsafeMutableRawBufferPointer] = []

    deinit { memory.forEach { $0.deallocate() } }

    func blocks(_ blocks: [RAMBlock]) {
        list = blocks
        memory = blocks.map {
            let bytes = UnsafeMutableRawBufferPointer.allocate(byteCount: Int($0.length), alignment: 4096)
            bytes.initializeMemory(as: UInt8.self, repeating: 0)
            return bytes
        }
    }

    func page(block: Int, offset: UInt64, bytes: UnsafeRawPointer) {
        memory[block].baseAddress.map { _ = memcpy($0 + Int(offset), bytes, 4096) }
    }

    func fill(block: Int, offset: UInt64, byte: UInt8) {
        memory[block].baseAddress.map { _ = memset($0 + Int(offset), Int32(byte), 4096) }
    }

    func index(_ name: String) throws -> Int { try unwrapped(list.firstIndex { $0.name == name }) }
}

/// The module against QEMU itself, on KVM.
final class RealQEMUTests: XCTestCase {
    private var folder = URL(filePath: "/nonexistent")

    override func setUpWithError() throws {
        if let missing = RealQEMU.missing {
            print("SKIPPED: \(missing), no test against a real QEMU")
            throw XCTSkip(missing)
        }
        folder = FileManager.default.temporaryDirectory.appending(path: "shadow-virt-stream-\(getpid())-\(name.hash)")
        try FileManager.default.createDirectory(at: folder, withIntermediateDirectories: true)
    }

    override func tearDown() {
        try? FileManager.default.removeItem(at: folder)
    }

    /// Everything a shadow does, on one machine: 50 epochs, the last one held; RAM compared byte by byte; activated in another
    /// QEMU, which runs on; the primary let go, run on, and given up by losing its heartbeat.
    func testEpochsHoldActivateAndLetGo() throws {
        let primary = try RealQEMU("a", in: folder)
        try primary.waitForProgress()
        let fd = try primary.startCOLO(delayMilliseconds: 10)
        var open = true
        defer { if open { close(fd) } }
        let pool = ChunkPool(limitBytes: 256 << 20)
        let reader = StreamReader(fd: fd, pool: pool)
        reader.deadline = .now.adding(milliseconds: 60_000)
        let dialogue = COLODialogue(reader: reader)
        var image = Image()

        let first = try start(dialogue, primary, &image, pool)
        XCTAssertEqual(first.header.sectionName, "ram")
        XCTAssertTrue(first.header.blocks.contains { $0.name == "pc.ram" && $0.length == 64 << 20 })

        var device: [UInt8] = []
        var pages: UInt64 = 0
        for epoch in 1...50 {
            try dialogue.awaitRequest()
            try dialogue.reply()
            let state = try dialogue.receiveEpoch(into: &image, acknowledgeEarly: epoch % 2 == 0 && epoch < 50)
            device = Array(state.bytes)
            pages += state.pages
            if epoch % 2 == 1, epoch < 50 { try dialogue.acknowledge() }
            reader.takeChunks().forEach(pool.give)
        }
        XCTAssertEqual(dialogue.stateName, "held")
        XCTAssertEqual(try primary.runStatus, "colo")
        XCTAssertGreaterThan(pages, 50 * 100)
        XCTAssertLessThanOrEqual(pool.bytesInUse, 2 << 20)
        try compareRAM(image, primary)

        try activate(first.header, image, device)

        try dialogue.acknowledge()
        try primary.waitForProgress()
        try dialogue.awaitRequest()
        close(fd)
        open = false
        try primary.command("x-colo-lost-heartbeat")
        try primary.wait("running after COLO") { try primary.runStatus == "running" }
        try primary.command("migrate-set-capabilities", ["capabilities": [["capability": "x-colo", "state": false]]])
        try primary.waitForProgress()
        XCTAssertFalse(primary.printed.contains(UInt8(ascii: "C")), "The primary's memory is corrupt")
    }

    /// What QEMU sent, fed again in every awkward way.
    func testRecordedFirstPassFedAgain() throws {
        let primary = try RealQEMU("a", in: folder)
        try primary.waitForProgress()
        let listener = try RealQEMU.listen(primary.path("colo"))
        try primary.command("migrate-set-parameters", ["max-bandwidth": 10_000_000_000])
        try primary.command("stop")
        try primary.command("migrate", ["uri": "unix:" + primary.path("colo")])
        let fd = accept(listener, nil, nil)
        close(listener)
        var recorded: [UInt8] = []
        var part = [UInt8](repeating: 0, count: 1 << 20)
        while case let got = read(fd, &part, part.count), got > 0 { recorded += part[..<got] }
        close(fd)
        print("Recorded \(recorded.count) bytes from QEMU")

        let whole = try parse(recorded, atATime: .max)
        try compareRAM(whole.0, primary, monitor: false)
        let single = try parse(recorded, atATime: 4093)
        XCTAssertEqual(whole.1, single.1)
        // Cut in the middle of things; the fixtures are cut at every byte.
        var generator = SeededGenerator(seed: 3)
        for _ in 0..<12 {
            let length = Int.random(in: 0..<whole.2, using: &generator)
            XCTAssertThrowsError(try parse(Array(recorded.prefix(length)), atATime: .max)) { error in
                XCTAssertEqual((error as? StreamError)?.kind, .endOfStream, "cut at \(length)")
            }
        }
        for _ in 0..<12 {
            var mutated = recorded
            for _ in 0..<30 { mutated[Int.random(in: 0..<min(5000, mutated.count), using: &generator)] ^= 1 << UInt8.random(in: 0..<8, using: &generator) }
            _ = try? parse(mutated, atATime: .max)
        }
    }

    // MARK: Helpers

    private func start(_ dialogue: COLODialogue, _ primary: RealQEMU, _ image: inout Image,
                       _ pool: ChunkPool) throws -> FirstPass {
        let first = try dialogue.firstPass(into: &image)
        dialogue.reader.takeChunks().forEach(pool.give)
        var complete = false
        try primary.wait("status colo") {
            complete = try dialogue.drainFirstDeviceState()
            return try primary.migrationStatus == "colo"
        }
        complete = try dialogue.drainFirstDeviceState()
        XCTAssertTrue(complete, "The description did not come to its end")
        try dialogue.sendReady()
        return first
    }

    /// Parses a first pass: the image, the outcome for comparison, the bytes it took.
    private func parse(_ stream: [UInt8], atATime: Int) throws -> (Image, FirstPass, Int) {
        let pair = SocketPair()
        let writer = withThread {
            pair.feed(stream, atATime: atATime)
            pair.endOfStream()
        }
        defer {
            shutdown(pair.ours, Int32(SHUT_RDWR))
            writer.wait()
        }
        let pool = ChunkPool(limitBytes: 256 << 20)
        let reader = StreamReader(fd: pair.ours, pool: pool)
        var image = LimitedImage()
        let first = try COLODialogue(reader: reader).firstPass(into: &image)
        reader.takeChunks().forEach(pool.give)
        return (image.image, first, Int(reader.offset))
    }

    /// Byte for byte: all of the memfd, and what the monitor reads outside the legacy video and ROM window.
    private func compareRAM(_ image: Image, _ qemu: RealQEMU, monitor: Bool = true) throws {
        let ram = image.memory[try image.index("pc.ram")]
        try qemu.withRAM { live in
            XCTAssertEqual(memcmp(try unwrapped(live.baseAddress), try unwrapped(ram.baseAddress), ram.count), 0, "RAM differs from QEMU's memfd")
        }
        guard monitor else { return }
        for range in [0..<0xa0000, 0x100000..<ram.count] {
            XCTAssertTrue(try qemu.physicalMemory(range).elementsEqual(ram[range]), "RAM differs from pmemsave at \(range)")
        }
    }

    private func turn(_ ram: UnsafeRawBufferPointer) -> UInt32 { ram.load(fromByteOffset: 0x20000, as: UInt32.self) }

    /// Activates the captured state in a second QEMU whose RAM we fill, and sees the guest go on from there.
    private func activate(_ header: StreamHeader, _ image: Image, _ device: [UInt8]) throws {
        let shadow = try RealQEMU("b", in: folder, ["-incoming", "defer"])
        let shared = try image.index("pc.ram")
        try shadow.withRAM { $0.copyMemory(from: UnsafeRawBufferPointer(image.memory[shared])) }
        let contents = header.blocks.filter { $0.index != shared }.map {
            ActivationStream.Content(block: $0.index, bytes: UnsafeRawBufferPointer(image.memory[$0.index]),
                                     startsZero: ActivationStream.startsZero($0.name))
        }
        let started = MonotonicTime.now
        try shadow.command("migrate-incoming", ["uri": "unix:" + shadow.path("in")])
        let fd = try RealQEMU.connect(shadow.path("in"))
        let total = try device.withUnsafeBytes { device in
            let stream = try ActivationStream(header: header, contents: contents, deviceState: device)
            try stream.write(to: fd, deadline: .now.adding(milliseconds: 10_000))
            return stream.totalBytes
        }
        close(fd)
        try shadow.wait("loaded") { try shadow.runStatus != "inmigrate" }
        try shadow.command("cont")
        let milliseconds = MonotonicTime.now.milliseconds(since: started)
        print("Activated from \(total) bytes in \(milliseconds) ms")
        try shadow.waitForProgress()
        XCTAssertEqual(try shadow.runStatus, "running")
        // The guest's turn number stands at 0x20000. Had it booted instead, it would have begun again at 0.
        let captured = turn(UnsafeRawBufferPointer(image.memory[shared]))
        XCTAssertGreaterThan(captured, 150)
        XCTAssertGreaterThan(try shadow.withRAM { turn(UnsafeRawBufferPointer($0)) }, captured)
        XCTAssertFalse(shadow.printed.contains(UInt8(ascii: "C")), "The shadow's memory is corrupt")
    }
}

/// Refuses block lists that a mutation made absurd.
private struct LimitedImage: PageSink {
    let image = Image()

    mutating func blocks(_ blocks: [RAMBlock]) throws(StreamError) {
        guard blocks.allSatisfy({ $0.length <= 256 << 20 }) else {
            throw StreamError(.badBlockList(reason: "too large for a test"), section: "test", offset: 0)
        }
        image.blocks(blocks)
    }

    mutating func page(block: Int, offset: UInt64, bytes: UnsafeRawPointer) {
        image.page(block: block, offset: offset, bytes: bytes)
    }

    mutating func fill(block: Int, offset: UInt64, byte: UInt8) {
        image.fill(block: block, offset: offset, byte: byte)
    }
}
