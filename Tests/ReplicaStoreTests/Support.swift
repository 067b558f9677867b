import Foundation
import Glibc
import XCTest
@testable import ReplicaStore

/// A folder of a test's own, and what tests do with it.
class FolderTestCase: XCTestCase {
    private(set) var folder = ""

    override func setUpWithError() throws {
        folder = FileManager.default.temporaryDirectory.path + "/replica-store-\(getpid())-\(UUID().uuidString.prefix(8))"
        try FileManager.default.createDirectory(atPath: folder, withIntermediateDirectories: true)
    }

    override func tearDown() {
        try? FileManager.default.removeItem(atPath: folder)
    }

    var store: String { folder + "/store" }

    /// A disk filled with one byte, or sparse.
    @discardableResult
    func makeDisk(_ name: String = "disk.raw", bytes: Int, fill: UInt8? = nil) throws -> String {
        let path = folder + "/" + name
        let content = fill.map { Data(repeating: $0, count: bytes) } ?? Data()
        try content.write(to: URL(fileURLWithPath: path))
        guard truncate(path, off_t(bytes)) == 0 else { throw SystemErrorText("truncate") }
        return path
    }

    func content(_ path: String) throws -> [UInt8] { Array(try Data(contentsOf: URL(fileURLWithPath: path))) }

    func put(_ bytes: [UInt8], _ path: String) throws { try Data(bytes).write(to: URL(fileURLWithPath: path)) }
}

struct SystemErrorText: Error, CustomStringConvertible {
    let description: String
    init(_ call: String) { description = "\(call): \(String(cString: strerror(errno)))" }
}

/// Bytes from hex digits; what follows a slash on a line is a comment.
func hex(_ text: String) -> [UInt8] {
    let digits = text.split(whereSeparator: \.isNewline).map { $0.prefix { $0 != "/" } }.joined().filter(\.isHexDigit)
    return stride(from: 0, to: digits.count, by: 2).map { at in
        let start = digits.index(digits.startIndex, offsetBy: at)
        return UInt8(digits[start..<digits.index(start, offsetBy: 2)], radix: 16) ?? 0
    }
}

/// Runs a shell command; what it printed on stdout and stderr together.
@discardableResult
func shell(_ command: String) throws -> (status: Int32, output: String) {
    let process = Process(), pipe = Pipe()
    process.executableURL = URL(fileURLWithPath: "/bin/bash")
    process.arguments = ["-c", command]
    process.standardOutput = pipe
    process.standardError = pipe
    process.standardInput = FileHandle.nullDevice
    try process.run()
    let output = String(decoding: pipe.fileHandleForReading.readDataToEndOfFile(), as: UTF8.self)
    process.waitUntilExit()
    return (process.terminationStatus, output)
}

func skipUnless(program: String, package: String) throws {
    guard try shell("command -v \(program)").status != 0 else { return }
    print("SKIPPED: \(program) is not installed (\(package))")
    throw XCTSkip("\(program) is not installed (\(package))")
}

/// The exerciser beside the tests.
func exerciser() throws -> String {
    let name = "replica-store-exerciser"
    let product = URL(fileURLWithPath: "/proc/self/exe").resolvingSymlinksInPath().deletingLastPathComponent().appendingPathComponent(name)
    let candidates = [product, Bundle(for: FolderTestCase.self).bundleURL.deletingLastPathComponent().appendingPathComponent(name)]
    guard let found = candidates.first(where: { FileManager.default.isExecutableFile(atPath: $0.path) }) else {
        throw XCTSkip("no \(name) beside the tests: run `swift build` first")
    }
    return found.path
}

extension ReplicaSet {
    /// Stages, prepares and applies; `memorySide` stands between the two.
    func commit(_ epoch: UInt64, _ writes: [(DiskExtent, [UInt8])], memorySide: () throws -> Void = {}) throws {
        try staging(writes) {
            try prepare(epoch: epoch)
            try memorySide()
            try apply(epoch: epoch)
        }
    }

    func staging(_ writes: [(DiskExtent, [UInt8])], _ body: () throws -> Void) throws {
        var buffers: [UnsafeMutableRawPointer] = []
        defer {
            discardStaged()
            buffers.forEach { $0.deallocate() }
        }
        for (extent, bytes) in writes {
            let buffer = UnsafeMutableRawPointer.allocate(byteCount: max(1, bytes.count), alignment: 16)
            bytes.withUnsafeBytes { if let base = $0.baseAddress { memcpy(buffer, base, $0.count) } }
            buffers.append(buffer)
            stage(extent, extent.kind == .data ? UnsafeRawPointer(buffer) : nil)
        }
        try body()
    }

    func write(_ extent: DiskExtent, _ bytes: [UInt8]) throws {
        try bytes.withUnsafeBytes { try writeNow(extent, $0.baseAddress) }
    }
}

func data(_ offset: UInt64, _ bytes: [UInt8], disk: Int = 0) -> (DiskExtent, [UInt8]) {
    (DiskExtent(disk: disk, kind: .data, offset: offset, length: bytes.count), bytes)
}

func zero(_ offset: UInt64, _ length: Int, kind: DiskExtent.Kind = .zero, disk: Int = 0) -> (DiskExtent, [UInt8]) {
    (DiskExtent(disk: disk, kind: kind, offset: offset, length: length), [])
}

/// XCTAssertEqual prints both of them whole.
func assertSame(_ value: @autoclosure () throws -> [UInt8], _ expected: [UInt8], _ message: String = "", file: StaticString = #filePath,
                line: UInt = #line) {
    let found: [UInt8]
    do { found = try value() } catch { return XCTFail("\(error)", file: file, line: line) }
    guard found != expected else { return }
    let at = zip(found, expected).enumerated().first { $0.element.0 != $0.element.1 }?.offset
    let place = at.map { "differ at \($0): \(found[$0]) instead of \(expected[$0])" } ?? "have \(found.count) and \(expected.count) bytes"
    XCTFail("The bytes \(place). \(message)", file: file, line: line)
}
