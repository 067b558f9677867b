import Foundation
import Platform
import XCTest

/// A client of somebody else's. Tests that need one that is not installed are skipped.
struct Tool {
    let path: String

    init(_ name: String) throws {
        let folders = ["/usr/bin", "/usr/local/bin", "/usr/sbin", "/bin"]
        guard let found = folders.map({ (folder: String) -> String in "\(folder)/\(name)" }).first(where: { access($0, X_OK) == 0 }) else {
            throw XCTSkip("\(name) is not installed (qemu-utils, libnbd-bin)")
        }
        path = found
    }

    func start(_ arguments: [String], output: String) throws -> Process {
        _ = FileManager.default.createFile(atPath: output, contents: nil)
        let process = Process()
        process.executableURL = URL(fileURLWithPath: path)
        process.arguments = arguments
        process.standardInput = FileHandle.nullDevice
        process.standardOutput = FileHandle(forWritingAtPath: output)
        process.standardError = process.standardOutput
        try process.run()
        return process
    }

    /// Exit status and what it printed; ended after a minute.
    func run(_ arguments: [String], in folder: Folder) throws -> (status: Int32, output: String) {
        let file = folder("output-\(UUID().uuidString.prefix(8))")
        let process = try start(arguments, output: file)
        let deadline = Date().addingTimeInterval(60)
        while process.isRunning, Date() < deadline { usleep(2000) }
        if process.isRunning { process.terminate() }
        process.waitUntilExit()
        return (process.terminationStatus, try String(contentsOfFile: file, encoding: .utf8))
    }

    /// The same, and a failure of the test when it fails.
    @discardableResult
    func succeed(_ arguments: String..., in folder: Folder, file: StaticString = #filePath, line: UInt = #line) throws -> String {
        let (status, said) = try run(arguments, in: folder)
        XCTAssertEqual(status, 0, "\(path) \(arguments): \(said)", file: file, line: line)
        return said
    }
}

/// A file of `bytes` with data in every other 64 KiB of its first half, the same on every run.
func makeDisk(_ path: String, bytes: Int, empty: Bool = false) throws {
    let file = try Descriptor(checking: open(path, O_RDWR | O_CREAT | O_TRUNC, 0o600), "open", path)
    guard ftruncate(file.raw, off_t(bytes)) == 0 else { throw SystemError("ftruncate", path) }
    if empty { return }
    var random = SeededGenerator(seed: 99)
    for offset in stride(from: 0, to: bytes / 2, by: 128 << 10) {
        let words = (0..<(8 << 10)).map { _ in random.next() }
        let written = words.withUnsafeBytes { pwrite(file.raw, $0.baseAddress, $0.count, off_t(offset)) }
        guard written == 64 << 10 else { throw SystemError("pwrite", path) }
    }
}

func allocatedBytes(_ path: String) -> Int {
    var status = stat()
    return stat(path, &status) == 0 ? Int(status.st_blocks) * 512 : -1
}

/// QEMU's monitor on a socket.
final class Monitor {
    private let fd: Int32
    private var buffer: [UInt8] = []
    private(set) var events: [String] = []

    /// Waits for the socket to appear.
    init(_ path: String) throws {
        let deadline = MonotonicTime.now.adding(milliseconds: 10_000)
        while true {
            do {
                fd = try UnixSocket.connect(path).release()
                break
            } catch {
                guard MonotonicTime.now < deadline else { throw error }
                usleep(20_000)
            }
        }
        _ = try line()
        try execute("{'execute': 'qmp_capabilities'}")
    }

    deinit { close(fd) }

    private func line() throws -> [String: Any] {
        while true {
            if let end = buffer.firstIndex(of: 10) {
                let object = try JSONSerialization.jsonObject(with: Data(buffer[..<end]))
                buffer.removeSubrange(...end)
                return try XCTUnwrap(object as? [String: Any])
            }
            buffer += try readFully(fd, count: 1, deadline: .now.adding(milliseconds: 20_000), during: "QMP")
        }
    }

    /// `command` with ' for ".
    @discardableResult
    func execute(_ command: String) throws -> Any {
        try writeFully(fd, text(command.replacingOccurrences(of: "'", with: "\"") + "\n"), deadline: .now.adding(milliseconds: 5000), during: "QMP")
        while true {
            let message = try line()
            if let event = message["event"] as? String { events.append(event) }
            if let error = message["error"] { throw MonitorFailure("\(command): \(error)") }
            if let result = message["return"] { return result }
        }
    }

    func wait(for event: String) throws {
        while !events.contains(event) {
            if let name = try line()["event"] as? String { events.append(name) }
        }
    }
}

struct MonitorFailure: Error, CustomStringConvertible {
    let description: String
    init(_ description: String) { self.description = description }
}
