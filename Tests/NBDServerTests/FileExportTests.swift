import Foundation
import NBDServer
import Platform
import XCTest

final class FileExportTests: XCTestCase {
    private func extents(_ export: FileExport, _ offset: UInt64, _ length: UInt64, firstOnly: Bool = false) throws -> [String] {
        var list: [String] = []
        try export.blockStatus(offset: offset, length: length, firstOnly: firstOnly) { list.append("\($0) \($1.rawValue)") }
        return list
    }

    func testExtentsZeroesAndTrim() throws {
        let folder = try Folder()
        try makeDisk(folder("disk"), bytes: 1 << 20)    // data at 0, 128 KiB, 256 KiB, 384 KiB; 64 KiB each
        let export = try FileExport(path: folder("disk"), name: "disk")
        try XCTSkipUnless(export.zeroesFast, "the file system of \(folder.path) cannot punch holes")
        XCTAssertEqual(try extents(export, 0, 128 << 10), ["65536 0", "65536 3"])
        XCTAssertEqual(try extents(export, 1000, 128 << 10, firstOnly: true), ["64536 0"])
        XCTAssertEqual(try extents(export, 512 << 10, 512 << 10), ["524288 3"])
        try export.trim(offset: 0, length: 64 << 10, forceUnitAccess: true)
        XCTAssertEqual(try extents(export, 0, 64 << 10).last?.hasSuffix(" 3"), true)
        try export.writeZeroes(offset: 128 << 10, length: 64 << 10, mayTrim: true, forceUnitAccess: false)
        XCTAssertEqual(try extents(export, 0, 256 << 10), ["262144 3"])
        try export.writeZeroes(offset: (256 << 10) + 5, length: 11, mayTrim: false, forceUnitAccess: true)
        var bytes = [UInt8](repeating: 1, count: 11)
        try bytes.withUnsafeMutableBytes { try export.read(offset: (256 << 10) + 5, into: $0) }
        XCTAssertEqual(bytes, [UInt8](repeating: 0, count: 11))
        try export.flush()
    }

    func testWhatIsNoDisk() throws {
        for (path, code) in [("/nonexistent", ENOENT), ("/dev/null", EINVAL), ("/tmp", EINVAL)] {
            XCTAssertThrowsError(try FileExport(path: path, name: "disk", isReadOnly: true)) { error in
                XCTAssertEqual((error as? SystemError)?.code, code, path)
            }
        }
    }

    func testAFileThatBecameShorter() throws {
        let folder = try Folder()
        try makeDisk(folder("disk"), bytes: 1 << 20)
        let export = try FileExport(path: folder("disk"), name: "disk")
        XCTAssertEqual(truncate(folder("disk"), 4096), 0)
        let result = try exchange([export], Session.simple() + Session.request(0, offset: 4000, length: 4096) + Session.disconnect)
        XCTAssertEqual(Array(result.output.dropFirst(28)), hex("67446698", "00000005", "0000000000000001"))
    }
}
