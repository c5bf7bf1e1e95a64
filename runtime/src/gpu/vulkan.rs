//! A Vulkan device, by the loader that the system has: memory, pipelines, recorded launches. Nothing of Vulkan is needed to build nnc;
//! where there is no loader, no driver or no device, the error says what was looked for.
//!
//! All device memory is the device's own; the host reads and writes through one staging buffer, so that every kind of device works the
//! same. Launches are recorded with a barrier after each, and submitted together.

use super::{Device, Launch};
use ash::vk;
use nnc_backends::gpu::gir::{self, Kernel};
use nnc_backends::gpu::spirv;
use nnc_ir::target::{Cooperative, Gpu, GpuIsa};
use nnc_ir::{Error, Result};
use std::sync::Arc;
use std::time::Duration;

/// Bytes of the staging buffer.
const STAGING: u64 = 16 << 20;

/// The libraries that the loader may be.
const LIBRARIES: &str = "libvulkan.so.1 (or libvulkan.so)";

fn failed(what: &str, e: vk::Result) -> Error {
    match e {
        vk::Result::ERROR_OUT_OF_DEVICE_MEMORY | vk::Result::ERROR_OUT_OF_HOST_MEMORY => Error::limit(format!("Vulkan: no memory is left to {what}")),
        vk::Result::ERROR_DEVICE_LOST => Error::io(format!("Vulkan: the device was lost to {what}")),
        e => Error::io(format!("Vulkan could not {what}: {e}")),
    }
}

fn no_device(why: String) -> Error {
    Error::unsupported("there is no Vulkan device on this machine").note(why).note(format!("looked for {LIBRARIES} and the drivers that it lists"))
}

/// The device and what is made once. Handles of everything else keep it alive.
struct Context {
    /// Keeps the loader open.
    _entry: ash::Entry,
    instance: ash::Instance,
    device: ash::Device,
    memory: vk::PhysicalDeviceMemoryProperties,
}

impl Drop for Context {
    fn drop(&mut self) {
        // SAFETY: everything made from these has been destroyed: it held a reference to this.
        unsafe {
            self.device.destroy_device(None);
            self.instance.destroy_instance(None);
        }
    }
}

pub struct Vulkan {
    context: Arc<Context>,
    queue: vk::Queue,
    commands: Commands,
    staging: Buffer,
    /// The staging buffer, mapped.
    mapped: *mut u8,
    limits: Gpu,
    /// Nanoseconds of a step of the queue's clock and the bits that count, where it has one.
    clock: Option<(f64, u32)>,
    name: String,
}

// SAFETY: the mapped pointer belongs to the staging buffer, which is only touched through `&mut self`.
unsafe impl Send for Vulkan {}

/// A pool of command buffers.
struct Commands {
    context: Arc<Context>,
    pool: vk::CommandPool,
}

impl Drop for Commands {
    fn drop(&mut self) {
        // SAFETY: every submission has been waited for.
        unsafe { self.context.device.destroy_command_pool(self.pool, None) }
    }
}

/// Memory of the device.
pub struct Buffer {
    context: Arc<Context>,
    buffer: vk::Buffer,
    memory: vk::DeviceMemory,
    bytes: u64,
}

impl Drop for Buffer {
    fn drop(&mut self) {
        // SAFETY: every submission that used it has been waited for.
        unsafe {
            self.context.device.destroy_buffer(self.buffer, None);
            self.context.device.free_memory(self.memory, None);
        }
    }
}

/// A kernel, compiled by the driver.
pub struct Pipeline {
    context: Arc<Context>,
    sets: vk::DescriptorSetLayout,
    layout: vk::PipelineLayout,
    pipeline: vk::Pipeline,
}

impl Drop for Pipeline {
    fn drop(&mut self) {
        // SAFETY: as for buffers.
        unsafe {
            self.context.device.destroy_pipeline(self.pipeline, None);
            self.context.device.destroy_pipeline_layout(self.layout, None);
            self.context.device.destroy_descriptor_set_layout(self.sets, None);
        }
    }
}

/// A command buffer and the bindings in it.
pub struct Recording {
    context: Arc<Context>,
    commands: vk::CommandPool,
    buffer: vk::CommandBuffer,
    descriptors: Option<vk::DescriptorPool>,
    /// Times before the first launch and after each, where they are wanted.
    times: Option<(vk::QueryPool, u32)>,
}

impl Drop for Recording {
    fn drop(&mut self) {
        // SAFETY: every submission has been waited for; the pool is that of the device which the owner of this keeps.
        unsafe {
            self.context.device.free_command_buffers(self.commands, &[self.buffer]);
            if let Some(pool) = self.descriptors {
                self.context.device.destroy_descriptor_pool(pool, None);
            }
            if let Some((pool, _)) = self.times {
                self.context.device.destroy_query_pool(pool, None);
            }
        }
    }
}

impl Vulkan {
    /// Opens the best device: a discrete one before an integrated one before a processor.
    pub fn open() -> Result<Vulkan> {
        // SAFETY: loading runs the library's initialisers, which the system's Vulkan loader makes safe to run.
        let entry = unsafe { ash::Entry::load() }.map_err(|e| no_device(e.to_string()))?;
        let about = vk::ApplicationInfo::default().application_name(c"nnc").api_version(vk::API_VERSION_1_2);
        let info = vk::InstanceCreateInfo::default().application_info(&about);
        // SAFETY: the structures live until the call returns.
        let instance = unsafe { entry.create_instance(&info, None) }.map_err(|e| no_device(format!("the loader finds no driver: {e}")))?;
        match Vulkan::choose(&instance) {
            Ok((physical, family)) => Vulkan::with(entry, instance, physical, family),
            Err(e) => {
                // SAFETY: nothing was made from the instance.
                unsafe { instance.destroy_instance(None) };
                Err(e)
            }
        }
    }

    fn choose(instance: &ash::Instance) -> Result<(vk::PhysicalDevice, u32)> {
        // SAFETY: the instance is alive.
        let all = unsafe { instance.enumerate_physical_devices() }.map_err(|e| no_device(e.to_string()))?;
        let rank = |p: &vk::PhysicalDevice| {
            // SAFETY: as above.
            let about = unsafe { instance.get_physical_device_properties(*p) };
            let order = match about.device_type {
                vk::PhysicalDeviceType::DISCRETE_GPU => 0,
                vk::PhysicalDeviceType::INTEGRATED_GPU => 1,
                vk::PhysicalDeviceType::VIRTUAL_GPU => 2,
                _ => 3,
            };
            (order, about.api_version)
        };
        let mut all: Vec<_> = all.into_iter().map(|p| (rank(&p), p)).filter(|((_, version), _)| *version >= vk::API_VERSION_1_2).collect();
        all.sort_by_key(|((order, _), _)| *order);
        for (_, p) in all {
            // SAFETY: as above.
            let families = unsafe { instance.get_physical_device_queue_family_properties(p) };
            if let Some(family) = families.iter().position(|f| f.queue_flags.contains(vk::QueueFlags::COMPUTE)) {
                return Ok((p, family as u32));
            }
        }
        Err(no_device("no device offers Vulkan 1.2 with a queue for compute".into()))
    }

    fn with(entry: ash::Entry, instance: ash::Instance, physical: vk::PhysicalDevice, family: u32) -> Result<Vulkan> {
        let mut v11 = vk::PhysicalDeviceVulkan11Features::default();
        let mut v12 = vk::PhysicalDeviceVulkan12Features::default();
        let mut has = vk::PhysicalDeviceFeatures2::default().push_next(&mut v11).push_next(&mut v12);
        // SAFETY: the chain of structures lives until the call returns.
        unsafe { instance.get_physical_device_features2(physical, &mut has) };
        let core = has.features;
        // Only what kernels use is asked for.
        let features = vk::PhysicalDeviceFeatures::default().shader_int64(core.shader_int64 != 0).shader_float64(core.shader_float64 != 0);
        let cooperative = cooperative(&entry, &instance, physical).filter(|_| v12.shader_float16 != 0 && v12.vulkan_memory_model != 0);
        let (halves, bytes) = (v11.storage_buffer16_bit_access != 0, v12.storage_buffer8_bit_access != 0);
        let mut v11 = vk::PhysicalDeviceVulkan11Features::default().storage_buffer16_bit_access(halves);
        let mut v12 = vk::PhysicalDeviceVulkan12Features::default()
            .storage_buffer8_bit_access(bytes)
            .shader_float16(cooperative.is_some())
            .vulkan_memory_model(cooperative.is_some());
        let mut matrices = vk::PhysicalDeviceCooperativeMatrixFeaturesKHR::default().cooperative_matrix(true);
        let extensions = [ash::khr::cooperative_matrix::NAME.as_ptr()];
        let priorities = [1.0];
        let queues = [vk::DeviceQueueCreateInfo::default().queue_family_index(family).queue_priorities(&priorities)];
        let mut info =
            vk::DeviceCreateInfo::default().queue_create_infos(&queues).enabled_features(&features).push_next(&mut v11).push_next(&mut v12);
        if cooperative.is_some() {
            info = info.enabled_extension_names(&extensions).push_next(&mut matrices);
        }
        // SAFETY: as above.
        let (about, memory) =
            unsafe { (instance.get_physical_device_properties(physical), instance.get_physical_device_memory_properties(physical)) };
        // SAFETY: as above.
        let device = match unsafe { instance.create_device(physical, &info, None) } {
            Ok(device) => device,
            Err(e) => {
                // SAFETY: nothing else was made from the instance.
                unsafe { instance.destroy_instance(None) };
                return Err(failed("open the device", e));
            }
        };
        let context = Arc::new(Context { _entry: entry, instance, device, memory });
        // SAFETY: the device has one queue of this family.
        let queue = unsafe { context.device.get_device_queue(family, 0) };
        let info = vk::CommandPoolCreateInfo::default().queue_family_index(family).flags(vk::CommandPoolCreateFlags::RESET_COMMAND_BUFFER);
        // SAFETY: as above.
        let pool = unsafe { context.device.create_command_pool(&info, None) }.map_err(|e| failed("make a command pool", e))?;
        let commands = Commands { context: context.clone(), pool };
        let visible = vk::MemoryPropertyFlags::HOST_VISIBLE | vk::MemoryPropertyFlags::HOST_COHERENT;
        let staging = allocate(&context, STAGING, visible)?;
        // SAFETY: the memory is visible to the host and not mapped.
        let mapped = unsafe { context.device.map_memory(staging.memory, 0, vk::WHOLE_SIZE, vk::MemoryMapFlags::empty()) }
            .map_err(|e| failed("map memory", e))?;
        let limits = Gpu { cooperative, ..limits(&about.limits, core.shader_int64 != 0, core.shader_float64 != 0, bytes, halves)? };
        let name = about.device_name_as_c_str().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
        // SAFETY: the instance is alive.
        let families = unsafe { context.instance.get_physical_device_queue_family_properties(physical) };
        let bits = families.get(family as usize).map_or(0, |f| f.timestamp_valid_bits);
        let clock = (bits > 0).then_some((f64::from(about.limits.timestamp_period), bits));
        Ok(Vulkan { context, queue, commands, staging, mapped: mapped.cast(), limits, clock, name })
    }

    fn pipeline_of(&self, module: vk::ShaderModule, entry: &str, buffers: usize, scalars: u32) -> Result<Pipeline> {
        let device = &self.context.device;
        let binding = |i: usize| {
            vk::DescriptorSetLayoutBinding::default()
                .binding(i as u32)
                .descriptor_type(vk::DescriptorType::STORAGE_BUFFER)
                .descriptor_count(1)
                .stage_flags(vk::ShaderStageFlags::COMPUTE)
        };
        let bindings: Vec<_> = (0..buffers).map(binding).collect();
        let info = vk::DescriptorSetLayoutCreateInfo::default().bindings(&bindings);
        // SAFETY: the structures live until the calls return, here and below.
        let sets = unsafe { device.create_descriptor_set_layout(&info, None) }.map_err(|e| failed("describe a kernel", e))?;
        let list = [sets];
        let range = [vk::PushConstantRange::default().stage_flags(vk::ShaderStageFlags::COMPUTE).size(scalars * 4)];
        let mut info = vk::PipelineLayoutCreateInfo::default().set_layouts(&list);
        if scalars > 0 {
            info = info.push_constant_ranges(&range);
        }
        // SAFETY: as above.
        let layout = match unsafe { device.create_pipeline_layout(&info, None) } {
            Ok(layout) => layout,
            Err(e) => {
                // SAFETY: nothing uses it.
                unsafe { device.destroy_descriptor_set_layout(sets, None) };
                return Err(failed("describe a kernel", e));
            }
        };
        let name = std::ffi::CString::new(entry).map_err(|_| Error::internal("a kernel's name holds a zero"))?;
        let stage = vk::PipelineShaderStageCreateInfo::default().stage(vk::ShaderStageFlags::COMPUTE).module(module).name(&name);
        let info = [vk::ComputePipelineCreateInfo::default().stage(stage).layout(layout)];
        // SAFETY: as above.
        let made = unsafe { device.create_compute_pipelines(vk::PipelineCache::null(), &info, None) };
        let pipeline = made.map_or_else(|(_, e)| Err(failed("compile a kernel", e)), |list| Ok(list[0]));
        let whole = |pipeline| Pipeline { context: self.context.clone(), sets, layout, pipeline };
        // A null pipeline is destroyed as nothing, with what is there of the rest.
        pipeline.map(whole).inspect_err(|_| drop(whole(vk::Pipeline::null())))
    }

    fn bind(&self, pool: vk::DescriptorPool, l: &Launch<Vulkan>) -> Result<vk::DescriptorSet> {
        let device = &self.context.device;
        let layouts = [l.kernel.sets];
        let info = vk::DescriptorSetAllocateInfo::default().descriptor_pool(pool).set_layouts(&layouts);
        // SAFETY: the pool has room for the sets of all launches.
        let set = unsafe { device.allocate_descriptor_sets(&info) }.map_err(|e| failed("bind buffers", e))?[0];
        let windows: Vec<[vk::DescriptorBufferInfo; 1]> = l
            .buffers
            .iter()
            .map(|(b, offset, range)| [vk::DescriptorBufferInfo { buffer: b.buffer, offset: *offset, range: (*range).max(4) }])
            .collect();
        let mut writes = vec![];
        for (i, w) in windows.iter().enumerate() {
            let write = vk::WriteDescriptorSet::default().dst_set(set).dst_binding(i as u32);
            writes.push(write.descriptor_type(vk::DescriptorType::STORAGE_BUFFER).buffer_info(w));
        }
        // SAFETY: the set is not in use, the buffers are alive.
        unsafe { device.update_descriptor_sets(&writes, &[]) };
        Ok(set)
    }

    fn command_buffer(&self) -> Result<Recording> {
        let info =
            vk::CommandBufferAllocateInfo::default().command_pool(self.commands.pool).level(vk::CommandBufferLevel::PRIMARY).command_buffer_count(1);
        // SAFETY: the pool is alive.
        let list = unsafe { self.context.device.allocate_command_buffers(&info) }.map_err(|e| failed("make a command buffer", e))?;
        Ok(Recording { context: self.context.clone(), commands: self.commands.pool, buffer: list[0], descriptors: None, times: None })
    }

    fn begin(&self, buffer: vk::CommandBuffer, flags: vk::CommandBufferUsageFlags) -> Result<()> {
        let info = vk::CommandBufferBeginInfo::default().flags(flags);
        // SAFETY: the command buffer is not being recorded or run.
        unsafe { self.context.device.begin_command_buffer(buffer, &info) }.map_err(|e| failed("record launches", e))
    }

    /// Records and runs copies.
    fn transfer(&mut self, from: vk::Buffer, to: vk::Buffer, source: u64, target: u64, bytes: u64) -> Result<()> {
        let recording = self.command_buffer()?;
        self.begin(recording.buffer, vk::CommandBufferUsageFlags::ONE_TIME_SUBMIT)?;
        let region = [vk::BufferCopy { src_offset: source, dst_offset: target, size: bytes }];
        // SAFETY: the callers keep both within their buffers.
        unsafe {
            self.context.device.cmd_copy_buffer(recording.buffer, from, to, &region);
            self.context.device.end_command_buffer(recording.buffer).map_err(|e| failed("copy", e))?;
        }
        self.submit(&recording)
    }
}

impl Device for Vulkan {
    type Buffer = Buffer;
    type Kernel = Pipeline;
    type Recording = Recording;

    fn name(&self) -> &str {
        &self.name
    }

    fn limits(&self) -> &Gpu {
        &self.limits
    }

    fn allocate(&mut self, bytes: u64) -> Result<Buffer> {
        allocate(&self.context, bytes.max(64), vk::MemoryPropertyFlags::DEVICE_LOCAL)
    }

    fn bytes(buffer: &Buffer) -> u64 {
        buffer.bytes
    }

    fn compile(&mut self, kernel: &Kernel) -> Result<Pipeline> {
        let device = &self.context.device;
        let words = spirv::module(&[kernel])?;
        let info = vk::ShaderModuleCreateInfo::default().code(&words);
        // SAFETY: the words are a module of a kernel that has verified.
        let module = unsafe { device.create_shader_module(&info, None) }.map_err(|e| failed("take a kernel", e))?;
        let made = self.pipeline_of(module, &spirv::entry_name(0, kernel), kernel.buffers.len(), kernel.scalars);
        // SAFETY: pipelines do not need their module any more.
        unsafe { device.destroy_shader_module(module, None) };
        made
    }

    fn record(&mut self, launches: &[Launch<Vulkan>], timed: bool) -> Result<Recording> {
        let device = &self.context.device;
        let mut recording = self.command_buffer()?;
        let total: usize = launches.iter().map(|l| l.buffers.len()).sum();
        if total > 0 {
            let sizes = [vk::DescriptorPoolSize::default().ty(vk::DescriptorType::STORAGE_BUFFER).descriptor_count(total as u32)];
            let info = vk::DescriptorPoolCreateInfo::default().max_sets(launches.len() as u32).pool_sizes(&sizes);
            // SAFETY: the structures live until the calls return, here and below.
            recording.descriptors = Some(unsafe { device.create_descriptor_pool(&info, None) }.map_err(|e| failed("bind buffers", e))?);
        }
        if timed {
            if self.clock.is_none() {
                return Err(Error::unsupported("the Vulkan device has no clock for launches"));
            }
            let count = launches.len() as u32 + 1;
            let info = vk::QueryPoolCreateInfo::default().query_type(vk::QueryType::TIMESTAMP).query_count(count);
            // SAFETY: as above.
            recording.times = Some((unsafe { device.create_query_pool(&info, None) }.map_err(|e| failed("time launches", e))?, count));
        }
        self.begin(recording.buffer, vk::CommandBufferUsageFlags::empty())?;
        let stamp = |k: usize| {
            if let Some((pool, _)) = recording.times {
                // SAFETY: the command buffer is being recorded; the pool has a query for each launch and one more.
                unsafe { device.cmd_write_timestamp(recording.buffer, vk::PipelineStageFlags::BOTTOM_OF_PIPE, pool, k as u32) };
            }
        };
        if let Some((pool, count)) = recording.times {
            // SAFETY: as above.
            unsafe { device.cmd_reset_query_pool(recording.buffer, pool, 0, count) };
        }
        stamp(0);
        for (k, l) in launches.iter().enumerate() {
            if let (Some(pool), false) = (recording.descriptors, l.buffers.is_empty()) {
                let set = self.bind(pool, l)?;
                // SAFETY: the command buffer is being recorded.
                unsafe {
                    device.cmd_bind_descriptor_sets(recording.buffer, vk::PipelineBindPoint::COMPUTE, l.kernel.layout, 0, &[set], &[]);
                }
            }
            let bytes: Vec<u8> = l.scalars.iter().flat_map(|s| s.to_le_bytes()).collect();
            let after = [vk::MemoryBarrier::default()
                .src_access_mask(vk::AccessFlags::SHADER_WRITE)
                .dst_access_mask(vk::AccessFlags::SHADER_READ | vk::AccessFlags::SHADER_WRITE | vk::AccessFlags::TRANSFER_READ)];
            let (from, to) = (vk::PipelineStageFlags::COMPUTE_SHADER, vk::PipelineStageFlags::COMPUTE_SHADER | vk::PipelineStageFlags::TRANSFER);
            let [x, y] = gir::grid(l.groups, self.limits.max_groups);
            // SAFETY: as above.
            unsafe {
                device.cmd_bind_pipeline(recording.buffer, vk::PipelineBindPoint::COMPUTE, l.kernel.pipeline);
                if !bytes.is_empty() {
                    device.cmd_push_constants(recording.buffer, l.kernel.layout, vk::ShaderStageFlags::COMPUTE, 0, &bytes);
                }
                device.cmd_dispatch(recording.buffer, x, y, 1);
                device.cmd_pipeline_barrier(recording.buffer, from, to, vk::DependencyFlags::empty(), &after, &[], &[]);
            }
            stamp(k + 1);
        }
        // SAFETY: as above.
        unsafe { device.end_command_buffer(recording.buffer) }.map_err(|e| failed("record launches", e))?;
        Ok(recording)
    }

    fn submit(&mut self, recording: &Recording) -> Result<()> {
        let device = &self.context.device;
        let buffers = [recording.buffer];
        let info = [vk::SubmitInfo::default().command_buffers(&buffers)];
        // SAFETY: recorded and not running: every submission is waited for.
        unsafe { device.queue_submit(self.queue, &info, vk::Fence::null()).and_then(|()| device.queue_wait_idle(self.queue)) }
            .map_err(|e| failed("run launches", e))
    }

    fn ends(&mut self, recording: &Recording) -> Result<Vec<Duration>> {
        let (Some((pool, count)), Some((period, bits))) = (recording.times, self.clock) else { return Err(super::not_timed()) };
        let mut ticks = vec![0u64; count as usize];
        let flags = vk::QueryResultFlags::TYPE_64 | vk::QueryResultFlags::WAIT;
        // SAFETY: the recording has run, and the list has room for all queries.
        unsafe { self.context.device.get_query_pool_results(pool, 0, &mut ticks, flags) }.map_err(|e| failed("time launches", e))?;
        let mask = u64::MAX >> (64 - bits.min(64));
        // The clock may have come round.
        let since = |t: &u64| Duration::from_secs_f64((t.wrapping_sub(ticks[0]) & mask) as f64 * period / 1e9);
        Ok(ticks[1..].iter().map(since).collect())
    }

    fn upload(&mut self, to: &Buffer, at: u64, data: &[u8]) -> Result<()> {
        super::within(to.bytes, at, data.len() as u64)?;
        for (i, chunk) in data.chunks(STAGING as usize).enumerate() {
            // SAFETY: the staging buffer has room for a chunk, is mapped, and no copy is under way.
            unsafe { std::ptr::copy_nonoverlapping(chunk.as_ptr(), self.mapped, chunk.len()) };
            self.transfer(self.staging.buffer, to.buffer, 0, at + i as u64 * STAGING, chunk.len() as u64)?;
        }
        Ok(())
    }

    fn download(&mut self, from: &Buffer, at: u64, data: &mut [u8]) -> Result<()> {
        super::within(from.bytes, at, data.len() as u64)?;
        for (i, chunk) in data.chunks_mut(STAGING as usize).enumerate() {
            self.transfer(from.buffer, self.staging.buffer, at + i as u64 * STAGING, 0, chunk.len() as u64)?;
            // SAFETY: as above.
            unsafe { std::ptr::copy_nonoverlapping(self.mapped, chunk.as_mut_ptr(), chunk.len()) };
        }
        Ok(())
    }

    fn copy(&mut self, from: &Buffer, to: &Buffer, bytes: u64) -> Result<()> {
        super::within(from.bytes, 0, bytes)?;
        super::within(to.bytes, 0, bytes)?;
        if bytes == 0 { Ok(()) } else { self.transfer(from.buffer, to.buffer, 0, 0, bytes) }
    }
}

fn allocate(context: &Arc<Context>, bytes: u64, wanted: vk::MemoryPropertyFlags) -> Result<Buffer> {
    let device = &context.device;
    let usage = vk::BufferUsageFlags::STORAGE_BUFFER | vk::BufferUsageFlags::TRANSFER_SRC | vk::BufferUsageFlags::TRANSFER_DST;
    let info = vk::BufferCreateInfo::default().size(bytes).usage(usage).sharing_mode(vk::SharingMode::EXCLUSIVE);
    // SAFETY: the structures live until the calls return, here and below.
    let buffer = unsafe { device.create_buffer(&info, None) }.map_err(|e| failed("make a buffer", e))?;
    // SAFETY: the buffer was just made.
    let needs = unsafe { device.get_buffer_memory_requirements(buffer) };
    let types = &context.memory.memory_types[..context.memory.memory_type_count as usize];
    let fits = |i: usize| needs.memory_type_bits & (1 << i) != 0 && types[i].property_flags.contains(wanted);
    let memory = match (0..types.len()).find(|i| fits(*i)) {
        Some(kind) => {
            let info = vk::MemoryAllocateInfo::default().allocation_size(needs.size).memory_type_index(kind as u32);
            // SAFETY: as above.
            unsafe { device.allocate_memory(&info, None) }.map_err(|e| failed(&format!("allocate {bytes} bytes"), e))
        }
        None => Err(Error::unsupported("the Vulkan device has no memory of the kind that buffers need")),
    };
    // From here on dropping frees both; freeing a null memory does nothing.
    let made = Buffer { context: context.clone(), buffer, memory: *memory.as_ref().unwrap_or(&vk::DeviceMemory::null()), bytes };
    memory?;
    // SAFETY: the memory is as large as the buffer asked for.
    unsafe { device.bind_buffer_memory(made.buffer, made.memory, 0) }.map_err(|e| failed("make a buffer", e))?;
    Ok(made)
}

/// The first of the matrices that the device lists whose operands are f16 and whose sums are f32, held by a subgroup.
fn cooperative(entry: &ash::Entry, instance: &ash::Instance, physical: vk::PhysicalDevice) -> Option<Cooperative> {
    // SAFETY: the instance is alive, here and below.
    let extensions = unsafe { instance.enumerate_device_extension_properties(physical) }.ok()?;
    extensions.iter().find(|e| e.extension_name_as_c_str() == Ok(ash::khr::cooperative_matrix::NAME))?;
    let mut has = vk::PhysicalDeviceCooperativeMatrixFeaturesKHR::default();
    // SAFETY: the chain of structures lives until the call returns, here and below.
    unsafe { instance.get_physical_device_features2(physical, &mut vk::PhysicalDeviceFeatures2::default().push_next(&mut has)) };
    let mut subgroup = vk::PhysicalDeviceSubgroupProperties::default();
    // SAFETY: as above.
    unsafe { instance.get_physical_device_properties2(physical, &mut vk::PhysicalDeviceProperties2::default().push_next(&mut subgroup)) };
    if has.cooperative_matrix == 0 {
        return None;
    }
    let matrices = ash::khr::cooperative_matrix::Instance::new(entry, instance);
    // SAFETY: the device has the extension.
    let all = unsafe { matrices.get_physical_device_cooperative_matrix_properties(physical) }.ok()?;
    let (f16, f32) = (vk::ComponentTypeKHR::FLOAT16, vk::ComponentTypeKHR::FLOAT32);
    let fits = |m: &&vk::CooperativeMatrixPropertiesKHR| {
        [m.a_type, m.b_type, m.c_type, m.result_type] == [f16, f16, f32, f32] && m.scope == vk::ScopeKHR::SUBGROUP
    };
    all.iter().find(fits).map(|m| Cooperative { rows: m.m_size, columns: m.n_size, depth: m.k_size, lanes: subgroup.subgroup_size })
}

/// What the device has of what kernels may ask for.
fn limits(l: &vk::PhysicalDeviceLimits, i64: bool, f64: bool, bytes: bool, halves: bool) -> Result<Gpu> {
    let most = Gpu::new(GpuIsa::SpirV);
    let max_threads = l.max_compute_work_group_invocations.min(l.max_compute_work_group_size[0]);
    if max_threads < most.threads || l.min_storage_buffer_offset_alignment > most.alignment {
        return Err(Error::unsupported("the Vulkan device has smaller groups, or aligns buffers more, than kernels are made for"));
    }
    Ok(Gpu {
        max_threads,
        max_groups: l.max_compute_work_group_count[0].min(l.max_compute_work_group_count[1]),
        shared_bytes: l.max_compute_shared_memory_size,
        max_buffers: l.max_per_stage_descriptor_storage_buffers.min(l.max_descriptor_set_storage_buffers),
        buffer_bytes: l.max_storage_buffer_range.into(),
        scalar_bytes: l.max_push_constants_size,
        i64,
        f64,
        bytes,
        halves,
        ..most
    })
}
