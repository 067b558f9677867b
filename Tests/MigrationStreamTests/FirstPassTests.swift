import Glibc
import MigrationStream
import Platform
import XCTest

final class FirstPassTests: XCTestCase {
    /// Parses `bytes`, cut off behind the last one.
    private func parse(_ bytes: [UInt8], chunkBytes: Int = 64 << 10) -> Outcome {
        let pair = SocketPair()
        pair.feed(bytes)
        pair.endOfStream()
        return outcome(pair, ChunkPool(chunkBytes: chunkBytes, limitBytes: 1 << 20))
    }

    private func outcome(_ pair: SocketPair, _ pool: ChunkPool) -> Outcome {
        let reader = StreamReader(fd: pair.ours, pool: pool)
        let dialogue = COLODialogue(reader: reader)
        var outcome = Outcome()
        do throws(StreamError) {
            outcome.header = try dialogue.firstPass(into: &outcome.ram).header
        } catch {
            outcome.error = error
            XCTAssertEqual(dialogue.stateName, "broken")
        }
        for chunk in reader.takeChunks() { pool.give(chunk) }
        return outcome
    }

    private func kind(_ bytes: [UInt8]) -> StreamError.Kind? { parse(bytes).error?.kind }

    func testWhole() {
        let outcome = parse(Fixture.firstPass)
        XCTAssertNil(outcome.error)
        XCTAssertEqual(outcome.ram, Fixture.firstRAM)
        XCTAssertEqual(outcome.header, Fixture.streamHeader)
    }

    func testByteByByte() {
        let pair = SocketPair()
        let writer = withThread {
            pair.feed(Fixture.firstPass, atATime: 1)
            pair.endOfStream()
        }
        let outcome = outcome(pair, ChunkPool(limitBytes: 1 << 20))
        writer.wait()
        XCTAssertEqual(outcome.ram, Fixture.firstRAM)
        XCTAssertEqual(outcome.header, Fixture.streamHeader)
    }

    func testCutAtEveryByte() {
        for length in 0..<Fixture.firstPass.count {
            let outcome = parse(Array(Fixture.firstPass.prefix(length)))
            XCTAssertEqual(outcome.error?.kind, .endOfStream, "cut at \(length)")
            XCTAssertLessThanOrEqual(outcome.error?.offset ?? .max, UInt64(length))
        }
    }

    func testSeededMutationsNeverTrap() {
        var generator = SeededGenerator(seed: 7)
        var rejected = 0
        for _ in 0..<3000 {
            var bytes = Fixture.firstPass
            for _ in 0..<Int.random(in: 1...4, using: &generator) {
                mutate(&bytes, &generator)
            }
            if parse(bytes).error != nil { rejected += 1 }
        }
        // Most bytes are page content, where anything goes.
        XCTAssertGreaterThan(rejected, 300)
    }

    func testManyChunks() {
        // 70 pages in chunks of 64 KiB: every chunk ends within a page record.
        let outcome = parse(smallStream(blockLength: 70 << 12, ram: pageRecords(70)))
        XCTAssertNil(outcome.error)
        for index in 0..<70 {
            XCTAssertEqual(outcome.ram.pages[.init(block: 0, offset: UInt64(index << 12))], page(UInt8(index)))
        }
    }

    // MARK: Every refusal, by name and offset

    private let blockName = bytes(hex: "06 70632e72616d")

    func testConfigurationMayBeAbsent() {
        let outcome = parse(smallStream(ram: []))
        XCTAssertNil(outcome.error)
        XCTAssertEqual(outcome.header?.blocks.count, 1)
        XCTAssertNil(outcome.header?.configuration)
    }

    func testHeader() {
        XCTAssertEqual(kind(bytes(hex: "51454d56 00000003")), .badMagic(0x5145_4d56))
        XCTAssertEqual(kind(bytes(hex: "5145564d 00000002")), .unsupportedVersion(2))
        XCTAssertEqual(kind(Fixture.header + [0x09]), .unknownSection(9))
        XCTAssertEqual(kind(Fixture.header + [0x04]), .unknownSection(4))
    }

    func testConfiguration() {
        XCTAssertEqual(kind(Fixture.header + bytes(hex: "07 ffffffff")),
                       .tooLong(what: "Machine name", length: 0xffff_ffff, limit: 256))
        let capabilities = "07 00000002 7063 05 1a" + "636f6e66696775726174696f6e2f6361706162696c6974696573" + "00000001"
        let ignoreShared = "0f 782d69676e6f72652d736861726564"
        XCTAssertEqual(kind(Fixture.header + bytes(hex: capabilities + "00000001" + ignoreShared)),
                       .unsupportedCapability(name: "x-ignore-shared"))
        XCTAssertEqual(kind(Fixture.header + bytes(hex: capabilities + "00010000")),
                       .tooLong(what: "Capability list", length: 65536, limit: 64))
        XCTAssertEqual(kind(Fixture.header + bytes(hex: "07 00000002 7063 05 01 78 00000001")),
                       .unknownConfiguration(name: "x"))
    }

    func testSectionsOfOtherDevices() {
        XCTAssertEqual(kind(Fixture.header + bytes(hex: "01 00000005 05 736c697270")),
                       .unsupportedSection(name: "slirp"))
        XCTAssertEqual(kind(Fixture.header + bytes(hex: "02 00000005")), .unknownSectionID(5))
        XCTAssertEqual(kind(Fixture.header + bytes(hex: "08 0007 0000")), .unsupportedCommand(7))
    }

    func testRAMFlags() {
        for flags: UInt64 in [0x00, 0x01, 0x20, 0x40, 0x60, 0x80, 0x100, 0x200, 0x0a, 0x18, 0x0c, 0x06] {
            let outcome = parse(smallStream(ram: bigEndian(flags)))
            XCTAssertEqual(outcome.error?.kind, .unknownRAMFlags(flags))
            XCTAssertEqual(outcome.error?.section, "ram end")
            XCTAssertEqual(outcome.error?.offset, UInt64(smallStream(ram: []).count - 13))
        }
        XCTAssertEqual(parse(smallStream(ram: bigEndian(UInt64(0x200)))).error?.description.contains("multifd"), true)
    }

    func testPagesOutsideTheirBlock() {
        XCTAssertEqual(kind(smallStream(ram: bigEndian(UInt64(0x28)))), .noBlock)
        XCTAssertEqual(kind(smallStream(ram: bigEndian(UInt64(0x1008)) + blockName)),
                       .pageOutOfBlock(name: "pc.ram", offset: 0x1000))
        XCTAssertEqual(kind(smallStream(ram: bigEndian(UInt64(0xffff_ffff_ffff_f002)) + blockName)),
                       .pageOutOfBlock(name: "pc.ram", offset: 0xffff_ffff_ffff_f000))
        XCTAssertEqual(kind(smallStream(ram: bigEndian(UInt64(0x08)) + bytes(hex: "01 78"))), .unknownBlock(name: "x"))
    }

    func testBlockLists() {
        XCTAssertEqual(kind(smallStream(ram: bigEndian(UInt64(0x1004)))), .misplacedBlockList)
        guard case .badBlockList = kind(smallStream(blockLength: 0x0, ram: [])) else { return XCTFail("empty list") }
        let start = "01 00000002 03 72616d 00000000 00000004"
        for list in ["0000000000002004 01 78 0000000000001000 01 78 0000000000001000",  // a name twice
                     "0000000000001004 01 78 0000000000002000",                        // more than the sum
                     "0000000000001004 01 78 0000000000000800",                        // half a page
                     "0000000000001004 01 78 0000000000000000"] {                      // nothing, for ever
            guard case .badBlockList = kind(Fixture.header + bytes(hex: start + list)) else {
                XCTFail(list)
                continue
            }
        }
        XCTAssertEqual(kind(Fixture.header + bytes(hex: start + "0000000000000010")), .misplacedBlockList)
    }

    func testFooter() {
        var bytes = Fixture.firstPass
        bytes[bytes.count - 5] = 0x7f
        XCTAssertEqual(kind(bytes), .badFooter)
        bytes = Fixture.firstPass
        bytes[bytes.count - 1] = 9
        XCTAssertEqual(kind(bytes), .badFooter)
    }
}

/// Flips, overwrites, inserts, or removes; half of the time among the words rather than in page content.
func mutate(_ bytes: inout [UInt8], _ generator: inout SeededGenerator) {
    guard bytes.count > 16 else { return }
    var place = Int.random(in: 0..<bytes.count, using: &generator)
    let isContent = place > 0 && bytes[place] == bytes[place - 1] && bytes[place] >= 0xa0
    if isContent, Bool.random(using: &generator) { place = Int.random(in: 0..<min(256, bytes.count), using: &generator) }
    switch Int.random(in: 0..<5, using: &generator) {
    case 0: bytes[place] ^= 1 << UInt8.random(in: 0..<8, using: &generator)
    case 1: bytes[place] = UInt8.random(in: 0...255, using: &generator)
    case 2: bytes[place] = 0xff
    case 3: bytes.insert(UInt8.random(in: 0...255, using: &generator), at: place)
    default: bytes.removeSubrange(place..<min(bytes.count, place + Int.random(in: 1...9, using: &generator)))
    }
}
