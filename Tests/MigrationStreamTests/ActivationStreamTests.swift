import Glibc
import MigrationStream
import Platform
import XCTest

final class ActivationStreamTests: XCTestCase {
    private let bios = page(0) + page(0xb1) + page(0) + page(0xb3)
    private var header: StreamHeader {
        StreamHeader(configuration: Fixture.configuration, machine: "pc", sectionID: 2, blocks: [
            RAMBlock(name: "pc.ram", length: 0x3000, index: 0), RAMBlock(name: "pc.bios", length: 0x4000, index: 1),
        ])
    }

    private func build<R>(startsZero: Bool = false, _ body: (ActivationStream) throws -> R) throws -> R {
        try bios.withUnsafeBytes { content in
            try Fixture.deviceState.withUnsafeBytes { device in
                try body(ActivationStream(header: header, contents: [.init(block: 1, bytes: content, startsZero: startsZero)],
                                          deviceState: device))
            }
        }
    }

    func testBytes() throws {
        let expected = Fixture.header + fields(("07", "configuration")) + Fixture.configuration + fields(
            ("01 0000 0002 03 72616d 0000 0000 0000 0004", "ram start"),
            ("0000 0000 0000 7004", "sum | block list"),
            ("06 70632e72616d 0000 0000 0000 3000", "pc.ram"),
            ("07 70632e62696f73 0000 0000 0000 4000", "pc.bios"),
            ("0000 0000 0000 0010 7e 0000 0002", "EOS, footer"),
            ("03 0000 0002", "ram end"),
            ("0000 0000 0000 0002 07 70632e62696f73 00", "zero page at 0 of pc.bios"),
            ("0000 0000 0000 1028", "page at 0x1000")) + page(0xb1) + fields(
            ("0000 0000 0000 2022 00", "zero page at 0x2000"),
            ("0000 0000 0000 3028", "page at 0x3000")) + page(0xb3) + fields(
            ("0000 0000 0000 0010 7e 0000 0002", "EOS, footer")) + Fixture.deviceState + fields(
            ("06 0000 0000", "an empty description"))
        try build { XCTAssertEqual($0.bytes(), expected); XCTAssertEqual($0.totalBytes, expected.count) }
    }

    func testParsesBack() throws {
        let pair = SocketPair()
        try build { try $0.write(to: pair.theirs) }
        pair.endOfStream()
        let reader = StreamReader(fd: pair.ours, pool: ChunkPool(limitBytes: 1 << 20))
        var ram = SparseRAM()
        let first = try COLODialogue(reader: reader).firstPass(into: &ram)
        XCTAssertEqual(first.header, header)
        XCTAssertEqual((0..<4).flatMap { ram.pages[.init(block: 1, offset: UInt64($0 << 12))] ?? [] }, bios)
        XCTAssertEqual(ram.pages.count, 4)
        XCTAssertEqual(Array(try reader.takeBytes(Fixture.deviceState.count)), Fixture.deviceState)
        XCTAssertEqual(Array(try reader.takeBytes(5)), [6, 0, 0, 0, 0])
        XCTAssertThrowsError(try reader.takeU8())
    }

    func testZeroPagesOfAFreshBlockAreLeftOut() throws {
        let all = try build { $0.totalBytes }
        let fewer = try build(startsZero: true) { $0.totalBytes }
        XCTAssertEqual(all - fewer, 2 * 9)
    }

    func testMorePiecesThanOneCallTakesAndASlowReceiver() throws {
        let pages = 3000
        var content: [UInt8] = []
        for index in 0..<pages { content += page(UInt8(index % 250 + 1)) }
        let header = StreamHeader(configuration: nil, machine: "", sectionID: 2, blocks: [
            RAMBlock(name: "vram", length: UInt64(content.count), index: 0),
        ])
        var ends: [Int32] = [-1, -1]
        pipe(&ends)
        let (input, output) = (ends[0], ends[1])
        _ = fcntl(output, F_SETFL, O_NONBLOCK)
        final class Received: @unchecked Sendable { var ram = SparseRAM(); var error: (any Error)? }
        let received = Received()
        let receiver = withThread {
            do {
                let reader = StreamReader(fd: input, pool: ChunkPool(limitBytes: 64 << 20))
                _ = try COLODialogue(reader: reader).firstPass(into: &received.ram)
                _ = try reader.takeBytes(Fixture.deviceState.count + 5)
            } catch { received.error = error }
        }
        try content.withUnsafeBytes { content in
            try Fixture.deviceState.withUnsafeBytes { device in
                try ActivationStream(header: header, contents: [.init(block: 0, bytes: content)], deviceState: device)
                    .write(to: output)
            }
        }
        receiver.wait()
        ends.forEach { close($0) }
        XCTAssertNil(received.error)
        XCTAssertEqual(received.ram.pages.count, pages)
        XCTAssertEqual(received.ram.pages[.init(block: 0, offset: UInt64(2999 << 12))], page(UInt8(2999 % 250 + 1)))
    }

    func testAReceiverThatTakesNothingOrIsGone() throws {
        let content = [UInt8](repeating: 5, count: 8 << 20)
        let header = StreamHeader(configuration: nil, machine: "", sectionID: 2, blocks: [
            RAMBlock(name: "vram", length: UInt64(content.count), index: 0),
        ])
        try content.withUnsafeBytes { content in
            try Fixture.deviceState.withUnsafeBytes { device in
                let stream = try ActivationStream(header: header, contents: [.init(block: 0, bytes: content)], deviceState: device)
                let pair = SocketPair()
                _ = fcntl(pair.ours, F_SETFL, O_NONBLOCK)
                XCTAssertThrowsError(try stream.write(to: pair.ours, deadline: .now.adding(milliseconds: 20))) { error in
                    XCTAssertEqual((error as? SystemError)?.code, ETIMEDOUT)
                }
                let gone = SocketPair()
                gone.closeTheirs()
                XCTAssertThrowsError(try stream.write(to: gone.ours)) { error in
                    XCTAssertEqual((error as? SystemError)?.code, EPIPE)
                }
            }
        }
    }

    func testRefusesWhatDoesNotFit() throws {
        let short = page(1)
        try short.withUnsafeBytes { short in
            try Fixture.deviceState.withUnsafeBytes { device in
                for (content, expected) in [
                    (ActivationStream.Content(block: 1, bytes: short),
                     ActivationStream.BuildError.wrongLength(block: "pc.bios", length: 4096, expected: 0x4000)),
                    (.init(block: 7, bytes: short), .noSuchBlock(7)),
                ] {
                    XCTAssertThrowsError(try ActivationStream(header: header, contents: [content], deviceState: device)) {
                        XCTAssertEqual($0 as? ActivationStream.BuildError, expected)
                    }
                }
                let cut = UnsafeRawBufferPointer(rebasing: device.dropLast())
                XCTAssertThrowsError(try ActivationStream(header: header, contents: [], deviceState: cut)) {
                    XCTAssertEqual($0 as? ActivationStream.BuildError, .badDeviceState)
                }
            }
        }
    }
}
