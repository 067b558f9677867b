import Foundation
import XCTest
@testable import ReplicaStore

final class ReplicaImageTests: FolderTestCase {
    func testReadWriteZeroTrim() throws {
        let path = try makeDisk(bytes: 300_000, fill: 0xee)
        let image = try ReplicaImage(path: path, byteCount: 300_000)
        var expected = [UInt8](repeating: 0xee, count: 300_000)
        let three: [UInt8] = [1, 2, 3]
        try image.write(three, 3, at: 299_997)
        expected.replaceSubrange(299_997..., with: [1, 2, 3])
        try image.zero(100_001, at: 4095)
        expected.replaceSubrange(4095..<104_096, with: [UInt8](repeating: 0, count: 100_001))
        XCTAssertTrue(try image.trim(512, at: 200_000))
        expected.replaceSubrange(200_000..<200_512, with: [UInt8](repeating: 0, count: 512))
        assertSame(try content(path), expected)
        var read = [UInt8](repeating: 9, count: 5)
        try image.read(&read, 5, at: 299_995)
        XCTAssertEqual(read, [0xee, 0xee, 1, 2, 3])
    }

    func testBounds() throws {
        let path = try makeDisk(bytes: 8192)
        let image = try ReplicaImage(path: path, byteCount: 8192)
        let byte: [UInt8] = [1]
        XCTAssertThrowsError(try image.write(byte, 1, at: 8192)) { error in
            XCTAssertEqual("\(error)", "A data of 1 bytes at 8192 of disk 0 lies outside it: the disk has 8192 bytes")
        }
        XCTAssertThrowsError(try image.zero(8193, at: 0))
        XCTAssertThrowsError(try image.zero(1, at: .max))
        XCTAssertThrowsError(try image.trim(-1, at: 0))
        XCTAssertNoThrow(try image.zero(0, at: 8192))
        XCTAssertEqual(try content(path).count, 8192)
    }

    func testSizeAndKindAreChecked() throws {
        let path = try makeDisk(bytes: 8192)
        XCTAssertThrowsError(try ReplicaImage(path: path, byteCount: 4096)) { error in
            XCTAssertEqual("\(error)", "\(path) has 8192 bytes, the guest's disk 4096. Make the volume again with the disk's size")
        }
        XCTAssertThrowsError(try ReplicaImage(path: "/dev/null", byteCount: 0)) { XCTAssertEqual($0 as? ReplicaError, .notAnImage(path: "/dev/null")) }
        XCTAssertThrowsError(try ReplicaImage(path: folder + "/none", byteCount: 0)) { XCTAssertEqual("\($0)", "open \(folder)/none: No such file or directory") }
    }

    func testHolesAreFound() throws {
        let path = try makeDisk(bytes: 1 << 20)
        let image = try ReplicaImage(path: path, byteCount: 1 << 20)
        XCTAssertEqual(image.holeEnd(at: 0), 1 << 20)
        let one: [UInt8] = [1]
        try image.write(one, 1, at: 512 << 10)
        XCTAssertEqual(image.holeEnd(at: 0), 512 << 10)
        XCTAssertNil(image.holeEnd(at: 512 << 10))
    }

    /// On a loop device, where the machine has them.
    func testABlockDevice() throws {
        let path = try makeDisk(bytes: 1 << 20, fill: 0xee)
        let made = try shell("losetup -f --show \(path)")
        guard made.status == 0 else { throw XCTSkip("No loop devices here: \(made.output)") }
        let device = made.output.trimmingCharacters(in: .whitespacesAndNewlines)
        defer { _ = try? shell("losetup -d \(device)") }
        let image = try ReplicaImage(path: device, byteCount: 1 << 20)
        XCTAssertTrue(image.isBlockDevice)
        XCTAssertNil(try image.identity())
        try image.zero(8192, at: 4096)
        try image.zero(100, at: 50)
        let two: [UInt8] = [1, 2]
        try image.write(two, 2, at: 65535)
        try image.sync()
        var expected = [UInt8](repeating: 0xee, count: 1 << 20)
        expected.replaceSubrange(4096..<12288, with: [UInt8](repeating: 0, count: 8192))
        expected.replaceSubrange(50..<150, with: [UInt8](repeating: 0, count: 100))
        expected.replaceSubrange(65535..<65537, with: [1, 2])
        assertSame(try content(path), expected)
    }
}

/// Against QEMU's own programs.
final class ImageLockTests: FolderTestCase {
    private let megabyte = 1 << 20

    func testQEMUIsRefusedWhileWeHoldIt() throws {
        try skipUnless(program: "qemu-io", package: "qemu-utils")
        let path = try makeDisk(bytes: megabyte)
        let image = try ReplicaImage(path: path, byteCount: UInt64(megabyte))
        for options in ["", "-r", "-r -U"] {
            let run = try shell("qemu-io \(options) -f raw -c 'read 0 512' \(path)")
            XCTAssertNotEqual(run.status, 0)
            XCTAssertTrue(run.output.contains("Failed to get"), run.output)
        }
        image.unlock()
        XCTAssertEqual(try shell("qemu-io -f raw -c 'write 0 512' \(path)").status, 0)
    }

    func testAnImageInUseByQEMUIsAnErrorThatSaysSo() throws {
        try skipUnless(program: "qemu-io", package: "qemu-utils")
        let path = try makeDisk(bytes: megabyte)
        for options in ["", "-r"] {
            let holder = Process(), ready = Pipe()
            holder.executableURL = URL(fileURLWithPath: "/usr/bin/env")
            holder.arguments = ["qemu-io", "-f", "raw"] + (options.isEmpty ? [] : [options]) + ["-c", "read 0 512", "-c", "sleep 20000", path]
            holder.standardOutput = ready
            holder.standardError = FileHandle.nullDevice
            holder.standardInput = FileHandle.nullDevice
            try holder.run()
            defer {
                holder.terminate()
                holder.waitUntilExit()
            }
            // Its locks are there by the time it has opened the file; it prints at the end of the read at the earliest.
            var error: (any Error)?
            for _ in 0..<200 where error == nil {
                usleep(50_000)
                do { try ReplicaImage(path: path, byteCount: UInt64(megabyte)).unlock() } catch let caught { error = caught }
            }
            guard case .imageInUse(path, _)? = error as? ReplicaError else { return XCTFail("\(String(describing: error))") }
            XCTAssertTrue("\(error!)".hasPrefix("\(path) is in use: another program holds QEMU's \""), "\(error!)")
        }
    }

    func testTwoOfOurs() throws {
        let path = try makeDisk(bytes: megabyte)
        let first = try ReplicaImage(path: path, byteCount: UInt64(megabyte))
        XCTAssertThrowsError(try ReplicaImage(path: path, byteCount: UInt64(megabyte))) { error in
            XCTAssertEqual(error as? ReplicaError, .imageInUse(path: path, permission: "consistent read"))
        }
        first.unlock()
    }

    /// The shadow's QEMU waits with the same image; a QEMU that would write to it does not start.
    func testAQEMUThatWaitsForAMigrationStartsAndAnotherDoesNot() throws {
        try skipUnless(program: "qemu-system-x86_64", package: "qemu-system-x86")
        let path = try makeDisk(bytes: megabyte)
        let image = try ReplicaImage(path: path, byteCount: UInt64(megabyte))
        let qemu = "timeout 60 qemu-system-x86_64 -S -machine pc,accel=tcg -nodefaults -display none -monitor stdio"
        let drives = ["-drive file=\(path),format=raw,if=none,id=d -device virtio-blk-pci,drive=d",
                      "-blockdev driver=file,filename=\(path),node-name=f -blockdev driver=raw,file=f,node-name=d -device virtio-blk-pci,drive=d"]
        for drive in drives {
            let waiting = try shell("printf 'info status\\nquit\\n' | \(qemu) -incoming defer \(drive)")
            XCTAssertTrue(waiting.status == 0 && waiting.output.contains("inmigrate"), waiting.output)
            let normal = try shell("printf 'quit\\n' | \(qemu) \(drive)")
            XCTAssertNotEqual(normal.status, 0)
            XCTAssertTrue(normal.output.contains("Failed to get"), normal.output)
        }
        image.unlock()
        XCTAssertEqual(try shell("printf 'quit\\n' | \(qemu) \(drives[0])").status, 0)
    }
}
