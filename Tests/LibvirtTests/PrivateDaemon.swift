import Foundation
import XCTest
@testable import Libvirt

/// A libvirtd of the test's own: mount, network and process namespaces, folders and configuration are private, so that nothing on the
/// machine sees it. All processes hang on the namespace's first one, a shell that reads commands and ends with its input: even when the
/// test process is killed, the kernel ends libvirtd and every QEMU with it.
final class PrivateDaemon: @unchecked Sendable {
    let folder: String
    private let shell = Process()
    private let commands = Pipe()
    private let answers = Pipe()

    var uri: String { "qemu+unix:///system?socket=\(folder)/run/libvirt-sock" }

    /// - Throws: `XCTSkip` with the reason when the machine lacks something.
    init() throws {
        guard geteuid() == 0 else { throw XCTSkip("Needs root for a libvirtd of its own") }
        let path = "/usr/sbin:/usr/bin:/sbin:/bin"
        for program in ["libvirtd", "qemu-system-x86_64", "qemu-img", "unshare"] {
            let found = path.split(separator: ":").contains { FileManager.default.isExecutableFile(atPath: "\($0)/\(program)") }
            guard found else { throw XCTSkip("\(program) is not installed") }
        }
        // Short: a socket's path has 108 bytes.
        folder = "/tmp/lv-\(UUID().uuidString.prefix(8))"
        for part in ["run", "lib", "cache", "log", "etc", "disks"] {
            try FileManager.default.createDirectory(atPath: "\(folder)/\(part)", withIntermediateDirectories: true)
        }
        try """
        auth_unix_rw = "none"
        unix_sock_group = "root"
        host_uuid = "\(UUID().uuidString.lowercased())"
        log_outputs = "3:file:\(folder)/log/libvirtd.log"
        """.write(toFile: "\(folder)/etc/libvirtd.conf", atomically: true, encoding: .utf8)
        try """
        user = "root"
        group = "root"
        security_driver = "none"
        namespaces = []
        cgroup_controllers = []
        stdio_handler = "file"
        """.write(toFile: "\(folder)/etc/qemu.conf", atomically: true, encoding: .utf8)

        shell.executableURL = URL(fileURLWithPath: "/usr/bin/env")
        shell.arguments = ["unshare", "-m", "-n", "-p", "-f", "--kill-child", "--mount-proc", "/bin/bash", "-c", Self.script, "init", folder]
        shell.environment = ["PATH": path, "LC_ALL": "C"]
        shell.standardInput = commands
        shell.standardOutput = answers
        shell.standardError = FileHandle(forWritingAtPath: "/dev/null")
        try shell.run()
        guard readLine() == "ready" else {
            remove()
            throw XCTSkip("Cannot make namespaces here (unshare -m -n -p)")
        }
    }

    /// Each command answers one line.
    private static let script = """
        r=$1
        mount --make-rprivate / && mkdir -p /run/libvirt /var/lib/libvirt /var/cache/libvirt /var/log/libvirt /etc/libvirt || exit 1
        mount --bind $r/run /run/libvirt && mount --bind $r/lib /var/lib/libvirt && mount --bind $r/cache /var/cache/libvirt || exit 1
        mount --bind $r/log /var/log/libvirt && mount --bind $r/etc /etc/libvirt || exit 1
        ip link set lo up
        echo ready
        while read -r command argument; do
          case $command in
            start) libvirtd --pid-file /run/libvirt/own.pid </dev/null >$r/log/out 2>&1 & pid=$! ;;
            signal) kill -$argument $pid; [ $argument = STOP ] || [ $argument = CONT ] || wait $pid ;;
            kill) kill -KILL $(cat /run/libvirt/qemu/$argument.pid) ;;
          esac 2>/dev/null
          echo done
        done
        """

    private func send(_ command: String) {
        try? commands.fileHandleForWriting.write(contentsOf: Data("\(command)\n".utf8))
        XCTAssertEqual(readLine(), "done")
    }

    private func readLine() -> String? {
        var line = Data()
        while let byte = try? answers.fileHandleForReading.read(upToCount: 1), !byte.isEmpty {
            if byte == Data("\n".utf8) { return String(decoding: line, as: UTF8.self) }
            line.append(byte)
        }
        return nil
    }

    /// Starts libvirtd; it answers within some seconds.
    func start() { send("start") }
    /// Sends libvirtd a signal: TERM, KILL, STOP, CONT. After the first two it is gone.
    func signal(_ name: String) { send("signal \(name)") }
    /// Kills a guest's QEMU.
    func killGuest(_ name: String) { send("kill \(name)") }

    func connect(keepAlive: (interval: Int32, count: UInt32)? = (5, 3)) throws -> Connection {
        var failure: (any Error)?
        for _ in 0..<200 {
            do { return try Connection.open(uri, keepAlive: keepAlive) } catch { failure = error }
            usleep(100_000)
        }
        throw failure ?? CocoaError(.fileReadUnknown)
    }

    /// Ends everything and removes the folder.
    func remove() {
        try? commands.fileHandleForWriting.close()
        shell.waitUntilExit()
        try? FileManager.default.removeItem(atPath: folder)
    }

    /// A guest without a system: its BIOS finds nothing to boot and waits.
    func guestXML(name: String, disk: String? = nil) -> String {
        let isKVM = access("/dev/kvm", R_OK | W_OK) == 0
        let disk = disk.map {
            "<disk type='file' device='disk'><driver name='qemu' type='raw'/><source file='\($0)'/><target dev='vda' bus='virtio'/></disk>"
        } ?? ""
        return """
            <domain type='\(isKVM ? "kvm" : "qemu")'><name>\(name)</name><memory unit='MiB'>32</memory><vcpu>1</vcpu>
              <os><type arch='x86_64' machine='pc'>hvm</type></os>
              <devices><emulator>/usr/bin/qemu-system-x86_64</emulator><controller type='usb' model='none'/>\(disk)
                <memballoon model='none'/></devices></domain>
            """
    }

    /// An empty image of 1 MiB.
    func makeDisk(_ name: String) throws -> String {
        let path = "\(folder)/disks/\(name)"
        try Data(count: 1 << 20).write(to: URL(fileURLWithPath: path))
        return path
    }
}
