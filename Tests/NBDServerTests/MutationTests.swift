import NBDServer
import XCTest

/// Sessions with damage: the server answers or ends, and loses neither memory nor descriptors. Seeded.
final class MutationTests: XCTestCase {
    private static let session: [UInt8] = hex("00000003") + Session.option(8) + Session.option(3)
        + Session.option(9, Session.name("disk") + hex("00000000"))
        + Session.option(10, Session.name("disk") + hex("00000001") + Session.name("base:allocation"))
        + Session.option(7, Session.name("disk") + hex("0001", "0003"))
        + Session.request(1, offset: 4096, length: 64) + [UInt8](repeating: 3, count: 64)
        + Session.request(0, offset: 0, length: 16384)
        + Session.request(7, length: 65536) + Session.request(6, offset: 8192, length: 4096, flags: 2)
        + Session.request(4, length: 4096) + Session.request(3) + Session.disconnect

    private func mutated(_ random: inout SeededGenerator) -> [UInt8] {
        var bytes = Self.session
        for _ in 0..<Int.random(in: 1...4, using: &random) {
            let place = Int.random(in: 0..<bytes.count, using: &random)
            switch Int.random(in: 0..<6, using: &random) {
            case 0: bytes[place] ^= 1 << UInt8.random(in: 0..<8, using: &random)
            case 1: bytes[place] = [0, 0xff, 0x7f, 0x80].randomElement(using: &random)!
            case 2: bytes.remove(at: place)
            case 3: bytes.insert(UInt8.random(in: 0...255, using: &random), at: place)
            case 4: bytes.removeSubrange(place..<min(bytes.count, place + Int.random(in: 1...40, using: &random)))
            default: bytes.insert(contentsOf: bytes[place..<min(bytes.count, place + 60)], at: Int.random(in: 0..<bytes.count, using: &random))
            }
            if bytes.isEmpty { return [0] }
        }
        return bytes
    }

    func testMutations() throws {
        var random = SeededGenerator(seed: 20)
        _ = try exchange([MemoryExport()], Self.session)
        let before = try openDescriptors()
        var errors = 0
        for turn in 0..<3000 {
            let export = MemoryExport()
            let step = turn % 3 == 0 ? Int.random(in: 1...50, using: &random) : .max
            let result = try exchange([export], mutated(&random), step: step)
            if !result.error.isEmpty { errors += 1 }
            XCTAssertTrue(export.isBalanced, "turn \(turn): \(export.calls)")
        }
        XCTAssertGreaterThan(errors, 1000)
        // Those of an earlier test may be closed meanwhile.
        XCTAssertLessThanOrEqual(try openDescriptors(), before)
    }
}
