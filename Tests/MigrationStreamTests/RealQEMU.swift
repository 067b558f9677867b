import Foundation
import Glibc
import XCTest

/// A real QEMU on KVM with a guest of our own, driven over QMP.
final class RealQEMU {
    struct Failure: Error, CustomStringConvertible {
        let description: String
    }

    static let binary = "/usr/bin/qemu-system-x86_64"
    static let memoryBytes = 64 << 20

    /// Each turn the guest checks that 112 pages hold the last turn's number, then stamps the next one into them. Every
    /// 32nd turn it prints B; C when a page disagrees. (A turn takes 0.6 ms on nested KVM.)
    private static let guest = """
        .code16
        .globl _start
        _start: cli; cld
         xorw %ax,%ax; movw %ax,%ds; movw %ax,%ss; movw $0x7000,%sp
         xorl %ebp,%ebp; movw $0x2000,%bx
        zero: movw %bx,%es; movl %ebp,%es:0; addw $0x100,%bx; cmpw $0x9000,%bx; jne zero
        turn: movw $0x2000,%bx
        check: movw %bx,%es; cmpl %ebp,%es:0; jne corrupt; addw $0x100,%bx; cmpw $0x9000,%bx; jne check
         incl %ebp; movw $0x2000,%bx
        stamp: movw %bx,%es; movl %ebp,%es:0; addw $0x100,%bx; cmpw $0x9000,%bx; jne stamp
         testl $0x1f,%ebp; jnz turn
         movw $0x3f8,%dx; movb $0x42,%al; outb %al,%dx; jmp turn
        corrupt: movw $0x3f8,%dx; movb $0x43,%al; outb %al,%dx; jmp corrupt
        .org 510
        .word 0xaa55

        """

    let process = Process()
    private let folder: URL
    private let name: String
    private var qmp: Int32 = -1
    private var received: [UInt8] = []

    /// Why this machine cannot run these tests; nil when it can.
    static var missing: String? {
        if access("/dev/kvm", R_OK | W_OK) != 0 { return "No access to /dev/kvm" }
        for tool in [binary, "/usr/bin/as", "/usr/bin/ld"] where access(tool, X_OK) != 0 { return "No \(tool)" }
        return nil
    }

    init(_ name: String, in folder: URL, _ extra: [String] = []) throws {
        self.name = name
        self.folder = folder
        let disk = folder.appending(path: "disk.img").path
        if access(disk, F_OK) != 0 { try Self.assemble(into: folder) }
        process.executableURL = URL(filePath: Self.binary)
        process.arguments = [
            "-accel", "kvm", "-m", "64", "-machine", "pc,memory-backend=pc.ram",
            "-object", "memory-backend-memfd,id=pc.ram,size=64M,share=on",
            "-drive", "file=\(disk),format=raw,if=ide,snapshot=on", "-display", "none", "-net", "none", "-nodefaults",
            "-vga", "std", "-serial", "file:\(logPath)", "-qmp", "unix:\(path("qmp")),server,nowait",
        ] + extra
        process.standardError = FileHandle.nullDevice
        try process.run()
        qmp = try Self.connect(path("qmp"))
        _ = try line()
        try command("qmp_capabilities")
    }

    deinit {
        if qmp >= 0 { close(qmp) }
        kill(process.processIdentifier, SIGKILL)
        process.waitUntilExit()
    }

    private static func assemble(into folder: URL) throws {
        try guest.write(to: folder.appending(path: "g.s"), atomically: true, encoding: .utf8)
        let shell = Process()
        shell.executableURL = URL(filePath: "/bin/sh")
        shell.currentDirectoryURL = folder
        shell.arguments = ["-c", """
            as --32 g.s -o g.o && ld -m elf_i386 -Ttext 0x7c00 --oformat binary g.o -o disk.img && truncate -s 1M disk.img
            """]
        try shell.run()
        shell.waitUntilExit()
        guard shell.terminationStatus == 0 else { throw Failure(description: "as or ld failed") }
    }

    func path(_ suffix: String) -> String { folder.appending(path: "\(name).\(suffix)").path }
    private var logPath: String { path("log") }

    /// What the guest has printed.
    var printed: [UInt8] { (try? Data(contentsOf: URL(filePath: logPath))).map(Array.init) ?? [] }

    static func connect(_ path: String, within seconds: Double = 10) throws -> Int32 {
        let end = Date(timeIntervalSinceNow: seconds)
        while Date() < end {
            let fd = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
            var address = unixAddress(path)
            let length = socklen_t(MemoryLayout<sockaddr_un>.size)
            let result = withUnsafePointer(to: &address) {
                $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { Glibc.connect(fd, $0, length) }
            }
            if result == 0 { return fd }
            close(fd)
            usleep(10_000)
        }
        throw Failure(description: "Nobody listens on \(path)")
    }

    static func listen(_ path: String) throws -> Int32 {
        unlink(path)
        let fd = socket(AF_UNIX, Int32(SOCK_STREAM.rawValue), 0)
        var address = unixAddress(path)
        let length = socklen_t(MemoryLayout<sockaddr_un>.size)
        let result = withUnsafePointer(to: &address) {
            $0.withMemoryRebound(to: sockaddr.self, capacity: 1) { bind(fd, $0, length) }
        }
        guard result == 0, Glibc.listen(fd, 1) == 0 else { throw Failure(description: "Cannot listen on \(path)") }
        return fd
    }

    private static func unixAddress(_ path: String) -> sockaddr_un {
        var address = sockaddr_un()
        address.sun_family = sa_family_t(AF_UNIX)
        withUnsafeMutableBytes(of: &address.sun_path) { $0.copyBytes(from: path.utf8.prefix($0.count - 1)) }
        return address
    }

    // MARK: QMP

    private func line() throws -> [String: Any] {
        while true {
            if let end = received.firstIndex(of: 10) {
                let text = Data(received[..<end])
                received.removeSubrange(...end)
                return try JSONSerialization.jsonObject(with: text) as? [String: Any] ?? [:]
            }
            var entry = pollfd(fd: qmp, events: Int16(POLLIN), revents: 0)
            guard poll(&entry, 1, 20_000) > 0 else { throw Failure(description: "QMP is silent") }
            var part = [UInt8](repeating: 0, count: 65536)
            let got = read(qmp, &part, part.count)
            guard got > 0 else { throw Failure(description: "QMP hung up") }
            received += part[..<got]
        }
    }

    @discardableResult
    func command(_ name: String, _ arguments: [String: Any] = [:]) throws -> [String: Any] {
        var text = try JSONSerialization.data(withJSONObject: ["execute": name, "arguments": arguments])
        text.append(10)
        _ = text.withUnsafeBytes { send(qmp, $0.baseAddress, $0.count, Int32(MSG_NOSIGNAL)) }
        while true {
            let reply = try line()
            if reply["event"] != nil { continue }
            if let error = reply["error"] { throw Failure(description: "\(name): \(error)") }
            return reply["return"] as? [String: Any] ?? [:]
        }
    }

    var migrationStatus: String {
        get throws { try command("query-migrate")["status"] as? String ?? "none" }
    }

    var runStatus: String {
        get throws { try command("query-status")["status"] as? String ?? "none" }
    }

    /// Polls until `condition` holds.
    func wait(_ what: String, seconds: Double = 15, _ condition: () throws -> Bool) throws {
        let end = Date(timeIntervalSinceNow: seconds)
        while Date() < end {
            if try condition() { return }
            usleep(5_000)
        }
        throw Failure(description: "Waited in vain: \(what); status \(try runStatus), migration \(try migrationStatus)")
    }

    func waitForProgress(_ turns: Int = 3) throws {
        let before = printed.count
        try wait("guest progress") { printed.count >= before + turns }
    }

    /// Starts COLO into a socket of ours and returns our end of it.
    func startCOLO(delayMilliseconds: Int) throws -> Int32 {
        let listener = try Self.listen(path("colo"))
        defer { close(listener) }
        try command("migrate-set-capabilities", ["capabilities": [["capability": "x-colo", "state": true]]])
        try command("migrate-set-parameters", ["x-checkpoint-delay": delayMilliseconds, "max-bandwidth": 10_000_000_000])
        try command("migrate", ["uri": "unix:" + path("colo")])
        let fd = accept(listener, nil, nil)
        guard fd >= 0 else { throw Failure(description: "accept") }
        return fd
    }

    /// The guest's RAM, mapped from QEMU's memfd.
    func withRAM<R>(_ body: (UnsafeMutableRawBufferPointer) throws -> R) throws -> R {
        let folder = "/proc/\(process.processIdentifier)/fd"
        for entry in try FileManager.default.contentsOfDirectory(atPath: folder) {
            let link = try? FileManager.default.destinationOfSymbolicLink(atPath: "\(folder)/\(entry)")
            guard link?.hasPrefix("/memfd:memory-backend-memfd") == true else { continue }
            let fd = open("\(folder)/\(entry)", O_RDWR)
            defer { close(fd) }
            guard let memory = mmap(nil, Self.memoryBytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0),
                  memory != MAP_FAILED else { break }
            defer { munmap(memory, Self.memoryBytes) }
            return try body(UnsafeMutableRawBufferPointer(start: memory, count: Self.memoryBytes))
        }
        throw Failure(description: "No memfd")
    }

    /// Guest-physical memory, through the monitor.
    func physicalMemory(_ range: Range<Int>) throws -> [UInt8] {
        try command("pmemsave", ["val": range.lowerBound, "size": range.count, "filename": path("mem")])
        return Array(try Data(contentsOf: URL(filePath: path("mem"))))
    }
}
