import Foundation
import NBDServer
import Platform
import XCTest

/// Bytes from hex digits, a string a field.
func hex(_ fields: String...) -> [UInt8] {
    let digits = Array(fields.joined().utf8).filter { $0 != UInt8(ascii: " ") }
    precondition(digits.count % 2 == 0, "half a byte in \(fields)")
    return stride(from: 0, to: digits.count, by: 2).map { UInt8(String(decoding: digits[$0..<($0 + 2)], as: UTF8.self), radix: 16)! }
}

func text(_ string: String) -> [UInt8] { Array(string.utf8) }

extension FixedWidthInteger {
    var big: [UInt8] { withUnsafeBytes(of: bigEndian) { Array($0) } }
}

/// A disk in memory that keeps a list of what it was asked.
final class MemoryExport: NBDExport, @unchecked Sendable {
    let name: String
    let description: String
    let byteCount: UInt64
    var isReadOnly = false
    var allowsSeveralConnections = false
    var canRead = true
    var zeroesFast = true
    var takesAtOnce = true
    var logsCalls = true
    var failure: NBDError?
    /// Writes wait here, when there is one.
    var gate: DispatchSemaphore?

    let memory: UnsafeMutableRawPointer
    private let buffers: UnsafeMutableRawPointer
    private let lock = NSLock()
    private var log: [String] = []
    private var prepared: [NBDConnectionID: Int] = [:]
    private var wrong = 0
    private var isWritten: [Bool]

    init(_ name: String = "disk", bytes: Int = 64 << 10, description: String = "") {
        self.name = name
        self.description = description
        byteCount = UInt64(bytes)
        memory = .allocate(byteCount: bytes, alignment: 4096)
        memset(memory, 0, bytes)
        buffers = .allocate(byteCount: NBDServer.maximumConnections << 20, alignment: 4096)
        isWritten = [Bool](repeating: false, count: (bytes + 4095) / 4096)
    }

    deinit {
        memory.deallocate()
        buffers.deallocate()
    }

    var calls: [String] { lock.withLock { log } }
    /// Every prepared buffer was given back, once, by its own connection.
    var isBalanced: Bool { lock.withLock { wrong == 0 && prepared.isEmpty } }
    var content: [UInt8] { Array(UnsafeRawBufferPointer(start: memory, count: Int(byteCount))) }

    private func note(_ call: String) throws(NBDError) {
        if logsCalls { lock.withLock { log.append(call) } }
        if let failure { throw failure }
    }

    private func mark(_ offset: UInt64, _ length: UInt64, _ written: Bool) {
        lock.withLock {
            for page in Int(offset / 4096)..<Int((offset + length + 4095) / 4096) {
                let whole = UInt64(page) * 4096 >= offset && UInt64(page + 1) * 4096 <= offset + length
                if written || whole { isWritten[page] = written }
            }
        }
    }

    func prepareWrite(length: Int, connection: NBDConnectionID) throws(NBDError) -> UnsafeMutableRawPointer {
        gate?.wait()
        if let failure, failure.code == ENOMEM { throw failure }
        lock.withLock { if prepared.updateValue(length, forKey: connection) != nil { wrong += 1 } }
        return buffers + connection.slot << 20
    }

    func takesWriteAtOnce(length: Int, connection: NBDConnectionID) -> Bool { takesAtOnce }

    private func give(_ connection: NBDConnectionID, _ length: Int?) {
        lock.withLock {
            let expected = prepared.removeValue(forKey: connection)
            if expected == nil || (length != nil && length != expected) { wrong += 1 }
        }
    }

    func abandonWrite(connection: NBDConnectionID) {
        give(connection, nil)
        try? note("abandon")
    }

    func write(offset: UInt64, bytes: UnsafeRawBufferPointer, forceUnitAccess: Bool, connection: NBDConnectionID) throws(NBDError) {
        if bytes.baseAddress != UnsafeRawPointer(buffers + connection.slot << 20) { lock.withLock { wrong += 1 } }
        give(connection, bytes.count)
        try note("write \(offset) \(bytes.count)\(forceUnitAccess ? " fua" : "")")
        memcpy(memory + Int(offset), bytes.baseAddress!, bytes.count)
        mark(offset, UInt64(bytes.count), true)
    }

    func read(offset: UInt64, into buffer: UnsafeMutableRawBufferPointer) throws(NBDError) {
        try note("read \(offset) \(buffer.count)")
        memcpy(buffer.baseAddress!, memory + Int(offset), buffer.count)
    }

    func writeZeroes(offset: UInt64, length: UInt64, mayTrim: Bool, forceUnitAccess: Bool) throws(NBDError) {
        try note("zeroes \(offset) \(length)\(mayTrim ? " trim" : "")\(forceUnitAccess ? " fua" : "")")
        memset(memory + Int(offset), 0, Int(length))
        if mayTrim { mark(offset, length, false) } else { mark(offset, length, true) }
    }

    func trim(offset: UInt64, length: UInt64, forceUnitAccess: Bool) throws(NBDError) {
        try note("trim \(offset) \(length)\(forceUnitAccess ? " fua" : "")")
        memset(memory + Int(offset), 0, Int(length))
        mark(offset, length, false)
    }

    func flush() throws(NBDError) { try note("flush") }

    func blockStatus(offset: UInt64, length: UInt64, firstOnly: Bool, _ extent: (UInt64, NBDExtentState) -> Void) throws(NBDError) {
        if let failure { throw failure }
        var position = offset
        while position < offset + length {
            let page = position / 4096
            let end = (page + 1) * 4096
            extent(end - position, lock.withLock { isWritten[Int(page)] } ? [] : [.hole, .zero])
            if firstOnly { return }
            position = end
        }
    }
}

/// What a connection gave back, and how it ended: "" for a proper end.
struct Exchange: Equatable {
    var output: [UInt8]
    var error: String
}

/// Feeds `input` to a server, at most `step` bytes at a time, closes for writing, and collects everything it says.
func exchange(_ exports: [any NBDExport], _ input: [UInt8], step: Int = .max, limits: NBDLimits = NBDLimits()) throws -> Exchange {
    var ends: [Int32] = [-1, -1]
    guard socketpair(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0, &ends) == 0 else { throw SystemError("socketpair") }
    let (client, server) = (ends[0], ends[1])
    defer { close(client) }
    let ended = Guarded<String?>(nil)
    Thread.detachNewThread {
        var error = ""
        do { try NBDServer.serve(Descriptor(owning: server), exports: exports, limits: limits) } catch let caught { error = "\(caught)" }
        ended.change { $0 = error }
    }
    var output: [UInt8] = []
    var sent = 0
    var open = true
    var buffer = [UInt8](repeating: 0, count: 64 << 10)
    let deadline = MonotonicTime.now.adding(milliseconds: 20_000)
    while true {
        if sent == input.count, open {
            shutdown(client, Int32(SHUT_WR))
            open = false
        }
        guard try !wait(client, for: open ? [.readable, .writable] : .readable, until: deadline).isEmpty else {
            throw ChannelError.timedOut(during: "an exchange")
        }
        let received = recv(client, &buffer, buffer.count, Int32(MSG_DONTWAIT))
        if received == 0 { break }
        if received > 0 { output += buffer[0..<received] }
        if received < 0, errno != EAGAIN { break }
        if open {
            let some = min(step, input.count - sent)
            let n = input[sent..<(sent + some)].withUnsafeBytes { send(client, $0.baseAddress!, some, Int32(MSG_DONTWAIT) | Int32(MSG_NOSIGNAL)) }
            if n > 0 { sent += n }
            // The server has closed; what it said before is still to be read.
            if n < 0, errno != EAGAIN { sent = input.count }
        }
    }
    guard let error = ended.wait(until: deadline, { $0 }) else { throw ChannelError.timedOut(during: "the end of a connection") }
    return Exchange(output: output, error: error)
}

/// A client on a real socket, for what has to be seen step by step.
final class TestClient: Sendable {
    let fd: Int32
    init(_ path: String) throws { fd = try UnixSocket.connect(path).release() }
    deinit { close(fd) }

    func send(_ bytes: [UInt8]) throws { try writeFully(fd, bytes, deadline: .now.adding(milliseconds: 5000), during: "a test") }
    func receive(_ count: Int) throws -> [UInt8] {
        try readFully(fd, count: count, deadline: .now.adding(milliseconds: 5000), during: "a test")
    }
    /// True when the server closes within the time.
    func isClosed(seconds: Double = 5) -> Bool {
        let deadline = MonotonicTime.now.adding(milliseconds: seconds * 1000)
        while let ready = try? wait(fd, for: .readable, until: deadline), !ready.isEmpty {
            var buffer = [UInt8](repeating: 0, count: 4096)
            if recv(fd, &buffer, buffer.count, 0) <= 0 { return true }
        }
        return false
    }
    /// True when there is something to read within the time.
    func hears(seconds: Double) throws -> Bool { try !wait(fd, for: .readable, until: .now.adding(milliseconds: seconds * 1000)).isEmpty }

    /// Through the handshake with EXPORT_NAME; simple replies.
    func open(_ name: String) throws {
        _ = try receive(18)
        try send(hex("00000003") + Session.option(1, text(name)))
        _ = try receive(10)
    }
}

/// Pieces of what a client sends.
enum Session {
    static func option(_ number: UInt32, _ data: [UInt8] = []) -> [UInt8] { text("IHAVEOPT") + number.big + UInt32(data.count).big + data }
    static func name(_ name: String) -> [UInt8] { UInt32(name.utf8.count).big + text(name) }
    static func request(_ command: UInt16, cookie: UInt64 = 1, offset: UInt64 = 0, length: UInt32 = 0, flags: UInt16 = 0) -> [UInt8] {
        hex("25609513") + flags.big + command.big + cookie.big + offset.big + length.big
    }
    static let disconnect = request(2)
    /// To transmission with simple replies; the server's side of it is 28 bytes.
    static func simple(_ name: String = "disk") -> [UInt8] { hex("00000003") + option(1, text(name)) }
}

/// A folder of its own, short enough for sockets, removed with the object.
final class Folder {
    let path: String
    init() throws {
        let base = ProcessInfo.processInfo.environment["TMPDIR"] ?? "/tmp"
        var template = Array("\(base)/nbd.XXXXXX".utf8CString)
        guard mkdtemp(&template) != nil else { throw SystemError("mkdtemp", base) }
        path = String(decoding: template.dropLast().map { UInt8(bitPattern: $0) }, as: UTF8.self)
    }
    deinit { try? FileManager.default.removeItem(atPath: path) }
    func callAsFunction(_ name: String) -> String { "\(path)/\(name)" }
}

func openDescriptors() throws -> Int { try FileManager.default.contentsOfDirectory(atPath: "/proc/self/fd").count }
