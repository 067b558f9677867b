import ControlProtocol
import Foundation
import XCTest
@testable import Orchestration

final class BundleShelfTests: XCTestCase {
    private let state = NSTemporaryDirectory() + "/bundles-\(UUID().uuidString)"
    private var shelf: BundleShelf { BundleShelf(stateDirectory: state) }

    override func tearDown() { try? FileManager.default.removeItem(atPath: state) }

    private func put(_ name: String, _ bytes: Int) throws -> Data {
        let data = Data((0..<bytes).map { UInt8(truncatingIfNeeded: $0 &* 31) })
        try FileManager.default.createDirectory(atPath: shelf.folder, withIntermediateDirectories: true)
        XCTAssertTrue(FileManager.default.createFile(atPath: "\(shelf.folder)/\(name)", contents: data))
        return data
    }

    func testNames() {
        for name in ["a-20261121T185119948.tar.gz", "node-1.example.com-20261121T1851.tar.gz"] { XCTAssertTrue(BundleShelf.isName(name), name) }
        for name in ["", ".tar.gz", "a.tar.gz", "../a-20261121T185119948.tar.gz", "a/b-20261121T185119948.tar.gz", "-20261121T185119948.tar.gz", "a-2026.tar.gz",
                     "a-20261121T185119948.tar", ".a-20261121T185119948.tar.gz", "a-20261121T185119948.tar.gz\n", "a-2026112\u{0}185119.tar.gz"] {
            XCTAssertFalse(BundleShelf.isName(name), name)
        }
    }

    func testFetchInParts() throws {
        let name = "a-20261121T185119948.tar.gz"
        for size in [0, 1, BundleShelf.partBytes, 2 * BundleShelf.partBytes + 17] {
            let data = try put(name, size)
            var parts = 0
            let path = try shelf.fetch(name, of: "a") { offset in
                parts += 1
                return try shelf.part(of: name, from: offset)
            }
            XCTAssertEqual(FileManager.default.contents(atPath: path), data)
            XCTAssertEqual(path, "\(shelf.folder)/from-a/\(name)")
            XCTAssertEqual(parts, max(1, (size + BundleShelf.partBytes - 1) / BundleShelf.partBytes))
        }
        XCTAssertEqual(shelf.list().map(\.from), [nil, "a"])
        XCTAssertEqual(try FileManager.default.attributesOfItem(atPath: "\(shelf.folder)/from-a/\(name)")[.posixPermissions] as? Int, 0o600)
    }

    /// A host that lies about its bundle fills neither memory nor disk, nor writes elsewhere.
    func testPartsThatMakeNoSense() throws {
        let name = "a-20261121T185119948.tar.gz"
        let lies = [BundlePart(total: BundleShelf.mostBytes + 1, data: Data([1])), BundlePart(total: 5, data: Data(count: 6)), BundlePart(total: 5, data: Data()),
                    BundlePart(total: -1, data: Data()), BundlePart(total: BundleShelf.mostBytes, data: Data(count: BundleShelf.partBytes + 1))]
        for lie in lies { XCTAssertThrowsError(try shelf.fetch(name, of: "a") { _ in lie }) { XCTAssertTrue("\($0)".contains("makes no sense"), "\($0)") } }
        var calls = 0
        XCTAssertThrowsError(try shelf.fetch(name, of: "a") { offset in
            calls += 1
            return BundlePart(total: offset + 10, data: Data(count: 5 + offset))
        })
        XCTAssertThrowsError(try shelf.fetch("../../x", of: "a") { _ in BundlePart(total: 0, data: Data()) })
        XCTAssertThrowsError(try shelf.part(of: "../diagnose/\(name)", from: 0)) { XCTAssertTrue("\($0)".contains("There is no bundle"), "\($0)") }
        _ = try put(name, 10)
        XCTAssertThrowsError(try shelf.part(of: name, from: 11))
        XCTAssertThrowsError(try shelf.part(of: name, from: -1))
        XCTAssertEqual(shelf.list().count, 1, "nothing was kept of what makes no sense")
    }

    func testTheLastFiveOfEachHostAreKept() throws {
        for day in 10..<18 {
            let name = "b-202611\(day)T1851.tar.gz"
            _ = try put(name, 3)
            _ = try shelf.fetch(name, of: "b") { try shelf.part(of: name, from: $0) }
        }
        XCTAssertEqual(shelf.list().filter { $0.from == "b" }.map(\.name), (13..<18).map { "b-202611\($0)T1851.tar.gz" })
    }
}
